"""Loads a model as a stranger would: plain transformers, in a process that can't import oct_hf.

python scripts/load_anywhere.py FOLDER_OR_ID [IMAGE …]   (a folder's own example pictures where no image is named)
"""

import sys
import time
from pathlib import Path

sys.modules["oct_hf"] = None  # from here on `import oct_hf` fails

from transformers import logging, pipeline  # noqa: E402


def main(repository: str, images: list[Path]) -> None:
    """Classifies the images, and prints one line for each."""
    logging.disable_progress_bar()
    started = time.monotonic()
    classify = pipeline("image-classification", model=repository, top_k=None)
    seconds = time.monotonic() - started
    print(f'\npipeline("image-classification", model="{repository}")  # {seconds:.0f} s, no oct_hf')
    for image in images:
        answers = sorted(classify(str(image)), key=lambda answer: -answer["score"])
        print(f"  {image}  ->  " + "  ".join(f"{a['label']} {a['score']:.3f}" for a in answers))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    own = sorted((Path(sys.argv[1]) / "examples").glob("*.png"))[:3]
    main(sys.argv[1], [Path(name) for name in sys.argv[2:]] or own)
