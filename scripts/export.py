"""Writes a model for another runtime, from gray pixels to calibrated probabilities; int8 only within its rule.

python scripts/export.py MODEL --to onnx|openvino|onnx-int8|openvino-int8|torch-export [--out FOLDER] [--data PATH]
(the same as `oct-hf export`)
"""

import sys

from oct_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    main()
