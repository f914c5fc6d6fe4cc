"""Parts of the page as HTML. File names and labels come from strangers: the template escapes all that it is given."""

from functools import cache
from pathlib import Path

import jinja2

from oct_hf.inference.app.answers import Answer
from oct_hf.inference.app.points import Point
from oct_hf.labels import describe
from oct_hf.pages import escaping_template

PURPOSE = "For research, not for diagnosis."


def part(name: str, *given) -> str:
    """One of the template's macros, with what it is given."""
    return str(getattr(_template().module, name)(*given))


@cache
def _template() -> jinja2.Template:
    path, names = Path(__file__).with_name("parts.html.jinja"), {"purpose": PURPOSE, "describe": describe}
    return escaping_template(path, names, look=_look, called=_called, share=_share)


def _look(answer: Answer) -> str:
    """The class by which an answer gets its colour."""
    if answer.error:
        return "failed"
    decision = answer.bscans[0].decision if not answer.eye else None
    if decision is None:
        return "sure"
    return "refused" if decision.refused else "unsure" if getattr(decision, "unsure", False) else "sure"


def _called(answer: Answer, point: Point) -> str:
    """What an operating point says of a picture, or of how many B-scans of a volume."""
    if answer.error or _look(answer) == "refused":
        return "–"
    found = sum(point.positive(bscan.probabilities) for bscan in answer.bscans)
    if answer.eye:
        return f"positive in {found} of {len(answer.bscans)}"
    return "positive" if found else "negative"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
