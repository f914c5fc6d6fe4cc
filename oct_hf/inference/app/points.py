"""The operating points that a model's run recorded, and what they mean for one B-scan and at another prevalence."""

from collections.abc import Mapping
from dataclasses import dataclass

from oct_hf.evaluation.operating_points import at_prevalence
from oct_hf.inference.recorded import views_of

_KINDS = {"at_specificity": "specificity", "at_sensitivity": "sensitivity", "at_youden": None}


@dataclass(frozen=True)
class Point:
    """A threshold for one question.

    Attributes:
        question: a disease, a sign, "urgent referral" or "any disease".
        chosen: how, in words.
        labels: whose probabilities are added up.
        threshold: of that sum; positive from it on.
        test: what it gave on the test side: `tp`, `fp`, `tn`, `fn`, `sensitivity`, `specificity`.
    """

    question: str
    chosen: str
    labels: tuple[str, ...]
    threshold: float
    test: Mapping

    @property
    def name(self) -> str:
        """For a person to choose by."""
        return f"{self.question}, {self.chosen}"

    def score(self, probabilities: Mapping[str, float]) -> float:
        """What is compared with the threshold."""
        return sum(probabilities[label] for label in self.labels)

    def positive(self, probabilities: Mapping[str, float]) -> bool:
        """Whether a B-scan with these probabilities is called."""
        return self.score(probabilities) >= self.threshold

    def predictive_values(self, prevalence: float) -> dict[str, float | None]:
        """`ppv` and `npv` where the share `prevalence` has it, from the test side's sensitivity and specificity."""
        pair = self.test["sensitivity"], self.test["specificity"]
        return {"ppv": None, "npv": None} if None in pair else at_prevalence(*pair, prevalence)


def recorded_points(run: Mapping, labels: tuple[str, ...]) -> list[Point]:
    """The points of a model's run.json; none where it records none that fit the labels.

    Args:
        run: its content, from anybody's repository.
        labels: of the model.
    """
    try:
        if "signs" in run:
            views, targets = run["signs"]["signs"], run["recipe"]["evaluation"]
            asked = {name: (view, (name,)) for name, view in views.items()}
        else:
            found = run["operating_points"]
            targets = found["targets"]
            views = views_of(found)
            asked = {name: (view, tuple(view["labels"] or ())) for name, view in views.items()}
        points = [
            Point(question, _chosen(kind, targets), wanted, float(view[kind]["threshold"]), dict(view[kind]["test"]))
            for question, (view, wanted) in asked.items()
            for kind in _KINDS
            if view.get(kind)
        ]
        for point in points:
            point.predictive_values(0.5)
            if not set(point.labels) <= set(labels):
                return []
        return points
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _chosen(kind: str, targets: Mapping) -> str:
    if _KINDS[kind] is None:
        return "most of both"
    return f"{_KINDS[kind]} {targets[_KINDS[kind]]:g}"
