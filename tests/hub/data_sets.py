"""Data sets to publish, built and read again: phantoms, and a clinic whose patients' names must stay there."""

from pathlib import Path

from PIL import Image
from pyarrow import parquet

from oct_hf.runs import data_set
from oct_hf.training.recipe_file import make_recipe

PHANTOMS = {
    "name": "demo",
    "data": {"name": "phantom", "patients": 6, "scans": 2, "height": 96, "width": 96},
    "split": {"validation": 0.2, "test": 0.3},
}
NAME = "Mustermann"


def named_clinic(folder: Path) -> Path:
    """Phantoms as a clinic may have them: the patient's name in file names, folds and the files' metadata."""
    from oct_hf.data.phantom import draw

    rows = ["file,who,side,fold,volume,device"]
    for label in ("DME", "NORMAL"):
        for patient in range(6):
            who = f"{NAME}{patient}{label}"
            (folder / label).mkdir(parents=True, exist_ok=True)
            for scan in range(2):
                picture = Image.fromarray(draw(label, 1, patient + 100 * (label == "DME"), scan, 96, 96).image)
                name = f"{label}/{who}_{scan}." + ("png" if scan else "jpg")
                exif = Image.Exif()
                exif[0x010E] = who
                picture.save(folder / name, exif=exif, comment=who)
                rows.append(f"{name},{who},{'OD' if patient % 2 else 'OS'},{who},{who} macula,Spectralis")
    (folder / "patients.csv").write_text("\n".join(rows))
    return folder


def build(recipe: dict, folder: Path, **options) -> dict:
    """A recipe's data set written to a new folder; its facts."""
    folder.mkdir()
    made = make_recipe(recipe)
    data, skipped = data_set.load_for_publishing(made)
    return data_set.write_data_set(data, made, skipped, folder, "you/data", "https://hub.example/you/data", **options)


def rows_of(folder: Path) -> dict[str, list[dict]]:
    """The rows of each side of a built data set."""
    sides: dict[str, list[dict]] = {}
    for path in sorted((folder / "data").glob("*.parquet")):
        sides.setdefault(path.name.split("-")[0], []).extend(parquet.read_table(path).to_pylist())
    return sides
