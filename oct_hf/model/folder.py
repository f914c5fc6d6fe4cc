"""Where a model's repository lies in a run; apart, so that publishing one needn't load torch."""

from pathlib import Path

from oct_hf.whole import taken_up


def model_folder(name: str | Path) -> Path:
    """The repository folder of a run, or `name` itself where that is one already (or an id on the Hub)."""
    folder = Path(name)
    of_run = taken_up(folder / "model")
    return of_run if of_run.is_dir() else taken_up(folder)
