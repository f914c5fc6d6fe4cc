"""What one visitor of the page has before them, and how it is drawn: answers, the one that is shown, its B-scan."""

import base64
from dataclasses import dataclass, field, replace

from oct_hf.errors import OCTError
from oct_hf.inference.app.answers import Answer, Shown, csv_of
from oct_hf.inference.app.parts import part
from oct_hf.inference.app.points import Point
from oct_hf.inference.app.served import Served
from oct_hf.pages import data_uri


@dataclass(frozen=True)
class Visit:
    """
    Attributes:
        answers: in the order of the files.
        chosen: number of the answer that is shown.
        number: of its B-scan that is shown, from 0.
    """

    answers: list[Answer] = field(default_factory=list)
    chosen: int = 0
    number: int = 0

    @property
    def answer(self) -> Answer | None:
        """The answer that is shown; None where there is none that could be read."""
        return next((one for one in self.answers[self.chosen : self.chosen + 1] if one.bscans), None)

    @property
    def bscan(self) -> Shown | None:
        """Its B-scan that is shown."""
        return self.answer.bscans[self.number] if self.answer else None

    @property
    def refused(self) -> bool:
        """Whether what is shown is no B-scan."""
        return bool(self.bscan and self.bscan.decision and self.bscan.decision.refused)

    def at_first(self) -> "Visit":
        """At the first answer that could be read."""
        return self.at(next((number for number, one in enumerate(self.answers) if one.bscans), 0))

    def at(self, chosen: int) -> "Visit":
        """At another answer, in a volume at the B-scan that tells most; unchanged where there is no such answer."""
        if not 0 <= chosen < len(self.answers):
            return self
        eye = self.answers[chosen].eye
        return replace(self, chosen=chosen, number=eye.driving[0] if eye else 0)

    def at_bscan(self, number: int) -> "Visit":
        """At another B-scan of the volume; unchanged where there is no such one."""
        there = self.answer and 0 <= number < len(self.answer.bscans)
        return replace(self, number=number) if there else self


def told(visit: Visit) -> str:
    """What the status line says of the answers."""
    answers = visit.answers
    failed = [one for one in answers if one.error]
    if len(answers) == 1:
        return f"{answers[0].name}: {answers[0].said}"
    if failed:
        return f"{len(answers) - len(failed)} of {len(answers)} answered; {failed[0].name}: {failed[0].error}" + (
            f", and {len(failed) - 1} more that can't be read" if len(failed) > 1 else ""
        )
    return f"{len(answers)} answered"


def listing(visit: Visit, served: Served, point: Point | None) -> str:
    """All answers as a table, with its CSV."""
    table = csv_of(visit.answers, served.predictor.labels) if visit.answers else ""
    encoded = base64.b64encode(table.encode()).decode()
    return part("listing", visit.answers, visit.chosen, point, encoded)


def detail(visit: Visit, served: Served) -> str:
    """The answer that is shown, with its probabilities."""
    return part("detail", visit.answer, visit.bscan, visit.number, served.calibrated)


def picture(visit: Visit, served: Served, with_heat: bool) -> str:
    """The B-scan that is shown, with heat over it where that is wanted and can be had."""
    one, bscan, layer, label, how, fault = visit.answer, visit.bscan, "", "", "", ""
    if bscan is None:
        return ""
    if with_heat and not visit.refused:
        label = max(bscan.probabilities, key=bscan.probabilities.__getitem__)
        try:
            drawn, how = served.heat.layer(bscan.pixels, label)
            layer = data_uri(drawn, "png")
        except OCTError as error:
            fault = str(error)
    return part("picture", one, data_uri(bscan.view, "jpeg"), visit.number, layer, label, how, fault)


def en_face(visit: Visit) -> str:
    """The fundus of a volume with its B-scans marked."""
    one = visit.answer
    return part("en_face", one, data_uri(one.en_face, "png")) if one and one.en_face else ""


def points(visit: Visit, point: Point | None, prevalence: float) -> str:
    """What the operating point says of the B-scan, and what it is worth where `prevalence` percent have the disease."""
    values = point.predictive_values(prevalence / 100) if point else None
    called = visit.bscan if visit.bscan and not visit.refused else None
    number = visit.number if visit.answer and visit.answer.eye else None
    return part("points", point, called, number, prevalence, values)
