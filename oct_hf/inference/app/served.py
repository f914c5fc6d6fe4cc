"""The model behind the page, and what its repository says that the page shows."""

from pathlib import Path

from oct_hf.inference.app.heat import Heat
from oct_hf.inference.app.points import recorded_points
from oct_hf.inference.description import file_of
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded_gate, recorded_rule, recorded_run
from oct_hf.model.folder import model_folder


class Served:
    """A model ready to answer on a page.

    Args:
        model: a run, a model folder or a Hub id.

    Attributes:
        folder: the model folder, or the id.
        title: what it is called.
        predictor: with the gate that its run recorded.
        rule: by which the B-scans of an eye are joined.
        points: the operating points that its run recorded.
        calibrated: whether its run fitted a temperature.
        examples: its repository's own pictures, by name.
        heat: draws its heat maps.

    Raises:
        ModelError: it can't be loaded.
    """

    def __init__(self, model: str):
        self.folder = str(model_folder(model))
        self.predictor = Predictor(self.folder, images=1)
        labels = self.predictor.labels
        self.predictor.gate = recorded_gate(self.folder, labels)
        self.rule, _ = recorded_rule(self.folder)
        run = recorded_run(self.folder)
        name = run.get("name")
        self.title = name if isinstance(name, str) else Path(self.folder).name
        self.points = recorded_points(run, labels)
        self.calibrated = _is_calibrated(run)
        self.examples = _examples(self.folder, run)
        self.heat = Heat(self.folder)


def _is_calibrated(run: dict) -> bool:
    """Of one label a B-scan there is one temperature, or why there is none; of signs one each."""
    found = run.get("calibration")
    if isinstance(run.get("signs"), dict):
        return isinstance(run["signs"].get("signs"), dict)
    return isinstance(found, dict) and not found.get("why")


def _examples(folder: str, run: dict) -> dict[str, Path]:
    names = run.get("examples")
    found = {Path(name).stem: file_of(folder, name) for name in names} if isinstance(names, dict) else {}
    return {name: file for name, file in found.items() if file is not None}
