"""Measures a model on labelled B-scans, or again from its own predictions.

python scripts/evaluate_model.py MODEL [--data PATH] [data.KEY=VALUE …]   (the same as `oct-hf evaluate`)
"""

import sys

from oct_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
