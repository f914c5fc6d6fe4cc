"""Fine-tunes as a recipe says, measures, and writes the model repository.

python scripts/finetune.py RECIPE [KEY=VALUE …] [--data PATH] [--out RUN]   (the same as `oct-hf finetune`)
"""

import sys

from oct_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "finetune")
    main()
