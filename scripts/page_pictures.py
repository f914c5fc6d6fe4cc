"""Draws docs/report.png and docs/app.png: a finished run's report, and the app with phantoms dropped on it.

python scripts/page_pictures.py runs/demo /usr/bin/chromium   # extras app, explain and test
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from oct_hf import draw_phantom, serving
from oct_hf.inference.app.server import running_app

DOCS = Path(__file__).parents[1] / "docs"
SIZE = {"width": 1100, "height": 1000}  # pixels
LABELS = ("CNV", "DME", "DRUSEN", "NORMAL")


def write(page: Page, path: Path) -> None:
    """What the window shows, in few colours, so that the README loads fast."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def drop_phantoms(page: Page, folder: Path) -> None:
    """A phantom of each label, by patients that the demo didn't draw; the first with its heat map."""
    files = []
    for label in LABELS:
        files.append(folder / f"{label.lower()}.png")
        Image.fromarray(draw_phantom(label, seed=3, height=248, width=256).image).save(files[-1])
    page.wait_for_selector("#files input[type=file]", state="attached")
    page.set_input_files("#files input[type=file]", files)
    page.wait_for_function("document.querySelectorAll('#listing tbody tr').length === 4")
    page.check("#heat input[type=checkbox]")
    page.wait_for_selector("#picture img.heat")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)  # milliseconds, for what moves to come to rest


def main(run: Path, chromium: str) -> None:
    """Opens both pages and writes both pictures."""
    taken = serving.take_port(0)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder, running_app(str(run)) as app:
        page = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False).new_page(viewport=SIZE)
        page.goto((run / "report.html").resolve().as_uri())
        write(page, DOCS / "report.png")
        with serving.running(app, taken):
            page.goto(f"http://127.0.0.1:{taken.getsockname()[1]}/")
            drop_phantoms(page, Path(folder))
            write(page, DOCS / "app.png")
            page.close()  # or its open connection is waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
