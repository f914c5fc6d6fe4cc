"""Where a model's repository lies in a run; apart, so that publishing one needn't load torch."""

from pathlib import Path


def model_folder(name: str | Path) -> Path:
    """The repository folder of a run, or `name` itself where that is one already (or an id on the Hub)."""
    folder = Path(name)
    return folder / "model" if (folder / "model").is_dir() else folder
