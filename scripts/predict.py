"""Classifies files and folders of B-scans.

python scripts/predict.py FILE_OR_FOLDER… --model MODEL [--out TABLE]   (the same as `oct-hf predict`)
"""

import sys

from oct_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "predict")
    main()
