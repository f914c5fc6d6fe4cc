"""Loads a written repository as a stranger would: plain transformers, in a process that can't import oct_hf.

python scripts/load_anywhere.py REPOSITORY [IMAGE …]   (its own example pictures where no image is named)
"""

import sys
import time
from pathlib import Path

sys.modules["oct_hf"] = None  # from here on `import oct_hf` fails

from transformers import logging, pipeline  # noqa: E402


def main(repository: Path, images: list[Path]) -> None:
    """Classifies the images, and prints one line for each."""
    logging.disable_progress_bar()
    started = time.monotonic()
    classify = pipeline("image-classification", model=str(repository), top_k=None)
    seconds = time.monotonic() - started
    print(f'\npipeline("image-classification", model="{repository}")  # {seconds:.0f} s, no oct_hf')
    for image in images:
        answers = sorted(classify(str(image)), key=lambda answer: -answer["score"])
        print(f"  {image}  ->  " + "  ".join(f"{a['label']} {a['score']:.3f}" for a in answers))
    print(f"\nThe repository and its card: {repository}/README.md")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    main(folder, [Path(name) for name in sys.argv[2:]] or sorted((folder / "examples").glob("*.png"))[:3])
