"""The report of a run: one self-contained HTML page for people, everything that was measured and where it went wrong.

No script and no network. It shows B-scans of the test side, so it stays in the run and is never published.
"""

import tempfile
from pathlib import Path

import yaml

from oct_hf import __version__
from oct_hf.evaluation.explain import overlay
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.report import can_draw
from oct_hf.hub.card import model_licence, span
from oct_hf.hub.figures import draw_figures
from oct_hf.hub.of_labels import operating_rows, score_names
from oct_hf.labels import describe
from oct_hf.pages import data_uri
from oct_hf.runs.explained import WrongAnswer
from oct_hf.runs.page import picture, write_page

ITEMS = Path(__file__).parents[1] / "evaluation" / "reporting_items.yaml"
_WIDTH = 320  # pixels of a picture


def write_report(out: Path, run: dict, predictions: Predictions, errors: list[WrongAnswer]) -> None:
    """Writes the page beside its place and renames it.

    Args:
        out: an .html file.
        run: the content of run.json.
        predictions: those that it was made from.
        errors: the worst ones, with their pictures.
    """
    page = {
        "run": run,
        "figures": _figures(run, predictions),
        "errors": [_shown(error) for error in errors],
        "checklists": checklists(run, bool(errors)),
        "scores": score_names(),
        "points": operating_rows(run["operating_points"]),
        "licence": model_licence(run),
        "version": __version__,
    }
    write_page(
        "report_page.html.jinja",
        page,
        out,
        score=lambda value: "n/a" if value is None else f"{value:.3f}",
        span=span,
        describe=describe,
    )


def checklists(run: dict, errors: bool) -> list[dict]:
    """What TRIPOD+AI and STARD ask, each item with the section that answers it or why there is none.

    Args:
        run: the content of run.json.
        errors: whether there are errors to be analysed.

    Returns:
        per guideline its name, `about` and `rows` of item, what it asks, and `section` (None where nothing answers it)
        or `author` (True where only a person can).
    """
    found = []
    for guideline in yaml.safe_load(ITEMS.read_text(encoding="utf-8")):
        rows = []
        for item in guideline["items"]:
            known = not item.get("needs") or bool(run.get(item["needs"]))
            known &= errors or item.get("section") != "errors"
            rows.append({"section": None, "author": False, **item} | ({} if known else {"section": None}))
        found.append({"name": guideline["guideline"], "about": guideline["about"], "rows": rows})
    return found


def _figures(run: dict, predictions: Predictions) -> dict[str, str]:
    """Data URIs of the run's figures by name; none without matplotlib."""
    if not can_draw():
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        draw_figures(Path(scratch), run, predictions)
        return {path.stem: data_uri(path.read_bytes(), "png") for path in sorted((Path(scratch) / "figures").iterdir())}


def _shown(error: WrongAnswer) -> dict:
    return {
        "plain": picture(error.image, _WIDTH),
        "heat": None if error.heat is None else picture(overlay(error.image, error.heat), _WIDTH),
        "truth": error.truth,
        "answer": error.answer,
        "probability": error.probability,
        "group": error.group,
    }
