"""Likely label errors of a data set: out-of-fold predictions, confident learning, and a page for a person to decide.

The loop is closed by the recipe: what the page saves is `data.corrections`, and a search with it shows what is left.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from oct_hf.data.corrections import LEAVE_OUT, read_corrections
from oct_hf.data.encoded import Encoded
from oct_hf.data.splits import fingerprint
from oct_hf.evaluation.label_errors import Suspect, find_suspects, require_cleanlab
from oct_hf.evaluation.label_page import Shown, label_page
from oct_hf.evaluation.predictions import Predictions
from oct_hf.images import read_image
from oct_hf.runs.labelled import is_public, load_data
from oct_hf.runs.out_of_fold import out_of_fold
from oct_hf.training.recipe import Recipe
from oct_hf.untrusted import cell
from oct_hf.whole import written_beside

PAGE, TABLE = "labels.html", "suspects.csv"
MOST_SHOWN = 200  # pictures on the page: about 4 MB, and an hour of a reader's time


@dataclass(frozen=True)
class LabelErrors:
    """What was found.

    Attributes:
        suspects: the surest first, all of them.
        predictions: what they were found in, out of fold.
        page: the HTML file.
    """

    suspects: list[Suspect]
    predictions: Predictions
    page: Path

    def write_csv(self, path: str | Path) -> None:
        """The suspects as a table, one a line, in order; whole or not at all."""
        names = self.predictions.names
        columns = ["rank", "content_hash", "group", "given_label", "suggested_label", "score"]
        columns += ["unit_suspects", "unit_images", "unit_score", *(f"p_{name}" for name in names)]
        with written_beside(Path(path)) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(map(cell, columns))
            for rank, one in enumerate(self.suspects, 1):
                row = [rank, one.content_hash, *map(cell, (one.group, one.given, one.suggested)), f"{one.score:.4f}"]
                row += [one.unit_suspects, one.unit_images, f"{one.unit_score:.4f}"]
                writer.writerow(row + [f"{one.probabilities[name]:.4f}" for name in names])


def find_label_errors(
    recipe: Recipe, out: str | Path, folds: int = 5, overwrite: bool = False, cache_dir: str | None = None
) -> LabelErrors:
    """Searches a recipe's data set for wrong labels; writes `out/labels.html` and `out/suspects.csv`.

    Images that a corrections.csv of the recipe already speaks of are no suspects: a person has looked at them.

    Args:
        recipe: how to train; its data are searched.
        out: folder for the runs of the folds and the results.
        folds: of the cross-validation.
        overwrite: replace other runs there.
        cache_dir: for the prepared data.

    Raises:
        OCTError: cleanlab is missing, too few patients, or whatever `finetune` refuses.
        Stopped: Ctrl-C or SIGTERM; the same call goes on.
    """
    require_cleanlab()
    predictions = out_of_fold(recipe, out, folds, overwrite, cache_dir)
    dataset, _ = load_data(recipe.data, cache_dir)
    row_of = {value: row for row, value in enumerate(dataset["content_hash"][:])}
    rows = [row_of[value] for value in predictions.hashes]
    eyes = dataset["eye"][:]
    units = [f"{group}\0{eyes[row]}" for group, row in zip(predictions.groups, rows, strict=True)]
    earlier = _earlier(recipe.data.corrections)
    looked_at = {row["content_hash"] for row in earlier}
    suspects = [s for s in find_suspects(predictions, units) if s.content_hash not in looked_at]
    shown = _pictures(dataset, suspects[:MOST_SHOWN], row_of, is_public(recipe.data))
    page = label_page(
        shown,
        predictions.names,
        title=recipe.data.title or recipe.name,
        images=len(predictions.hashes),
        found=len(suspects),
        folds=folds,
        fingerprint=fingerprint(predictions.hashes, predictions.groups, predictions.labels),
        unit=recipe.data.grouped_by,
        earlier=earlier,
    )
    found = LabelErrors(suspects, predictions, Path(out) / PAGE)
    found.write_csv(Path(out) / TABLE)
    with written_beside(found.page) as beside:
        beside.write_text(page, encoding="utf-8")
    return found


def _pictures(dataset: datasets.Dataset, suspects: list[Suspect], row_of: dict[str, int], public: bool) -> list[Shown]:
    """Each suspect with its picture, and what lies beside it in the order of the same eye's file names."""
    encoded = Encoded(dataset)
    names, labels = dataset.features["label"].names, dataset["label"][:]
    patients, eyes, sources = dataset["patient_id"][:], dataset["eye"][:], dataset["source"][:]
    volumes: dict[tuple[str, str], list[int]] = {}
    for row in sorted(range(len(sources)), key=lambda row: _natural(sources[row])):
        volumes.setdefault((patients[row], eyes[row]), []).append(row)

    def picture(row: int) -> np.ndarray:
        return read_image(encoded[row])

    shown = []
    for suspect in suspects:
        row = row_of[suspect.content_hash]
        volume = volumes[patients[row], eyes[row]]
        place = volume.index(row)
        beside = volume[max(place - 1, 0) : place] + volume[place + 1 : place + 2]
        neighbours = [(picture(other), names[labels[other]]) for other in beside]
        # A private set's file names may hold a name or a birth date.
        shown.append(Shown(suspect, picture(row), eyes[row], sources[row] if public else "", neighbours))
    return shown


def _natural(name: str) -> list:
    """A key that puts scan_9 before scan_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _earlier(path: str | None) -> list[dict]:
    """The rows of a person's corrections.csv as they are, remarks included; the page saves them along."""
    if path is None:
        return []
    rows = []
    for one in read_corrections(path):
        decision = "keep" if one.label == one.given_label else LEAVE_OUT if one.label == LEAVE_OUT else "change"
        rows.append(
            {
                "content_hash": one.content_hash,
                "label": one.label,
                "given_label": one.given_label,
                "decision": decision,
                "reviewer": one.reviewer,
                "note": one.note,
            }
        )
    return rows
