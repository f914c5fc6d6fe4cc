"""One page to look at a data set: self-contained HTML, pictures as data URIs, charts as SVG, no script, no network.

What is shown is chosen by a seed, so the same data give the same page. It holds pictures of patients and stays home.
"""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np

from oct_hf import __version__
from oct_hf.data.encoded import Encoded
from oct_hf.data.quality import is_oct
from oct_hf.data.splits import SIDES
from oct_hf.data.transforms import Augmentation
from oct_hf.images import Preprocessing, read_image, to_gray
from oct_hf.labels import describe
from oct_hf.parallel import in_order
from oct_hf.runs import page as html
from oct_hf.runs.check import Checked, offending_pairs
from oct_hf.runs.labelled import is_public
from oct_hf.training.recipe import Recipe

SAMPLES = 6  # of each class
DRAWS = 5  # augmented pictures of one B-scan
PAIRS = 12
MEASURED = 2_000  # B-scans that intensities and sizes are taken from
_WIDTH = 220  # pixels of a thumbnail
_BINS = 64
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito


def write_page(checked: Checked, recipe: Recipe, out: Path, seed: int = 0) -> None:
    """Writes the page beside its place and renames it.

    Args:
        checked: what `check` found.
        recipe: its data, split and augmentation.
        out: an .html file.
        seed: of the choice of samples.
    """
    rows, encoded = checked.dataset.select_columns(["source", "eye", "content_hash"]), Encoded(checked.dataset)
    names = checked.dataset.features["label"].names
    labels, rng = np.array(checked.dataset["label"][:]), np.random.default_rng(seed)
    split = checked.splits[-1]
    sides = np.array(split.sides or ["" for _ in labels])

    def pixels(number: int) -> np.ndarray:
        return to_gray(read_image(encoded[number]))

    def about(number: int) -> str:
        row = rows[int(number)]
        told = [
            row["source"],
            f"{recipe.data.grouped_by} {checked.patients[int(number)]}",
            row["eye"],
            sides[int(number)],
        ]
        return ", ".join(filter(None, told))

    samples = []
    for index, name in enumerate(names):
        mine = rng.permutation(np.flatnonzero(labels == index))[:SAMPLES]
        pictures = [(_picture(pixels(n)), about(n)) for n in mine]
        samples.append({"label": name, "words": describe(name), "pictures": pictures})
    chosen = rng.permutation(len(labels))[:MEASURED]
    measured = list(in_order(lambda n: (pixels(n), len(encoded[n])), chosen))
    likeness, quality, faults = (checked.dataset[c][:] for c in ("oct_likeness", "quality", "fault"))
    likely, order = is_oct(np.array(likeness)), np.argsort(quality, kind="stable")
    strange = np.argsort(likeness)[: min(PAIRS, int((~likely).sum()))]
    poor = [n for n in order[likely[order]][:PAIRS] if faults[n]]
    page = {
        "title": checked.title,
        "facts": checked.to_dict(),
        "about": recipe.data,
        "public": is_public(recipe.data),
        "names": names,
        "classes": [int((labels == i).sum()) for i in range(len(names))],
        "unit": recipe.data.grouped_by,
        "samples": samples,
        "augmented": _augmented(
            recipe, checked.dataset.select_columns("content_hash"), encoded, rng.permutation(len(labels))[:3]
        ),
        "augmentation": recipe.augment if isinstance(recipe.augment, str) else "custom",
        "sizes": Counter(f"{p.shape[1]} × {p.shape[0]}" for _, (p, _) in measured).most_common(8),
        "measured": len(measured),
        "kilobytes": round(float(np.median([size for _, (_, size) in measured])) / 1000, 1),
        "by_class": _histogram({n: [p for i, (p, _) in measured if labels[i] == k] for k, n in enumerate(names)}),
        "by_side": _histogram({s: [p for i, (p, _) in measured if sides[i] == s] for s in SIDES}),
        "per_patient": _per_patient(checked.patients),
        "strange": [(_picture(pixels(n)), f"likeness {likeness[n]:.2f}, {about(n)}") for n in strange],
        "poor": [(_picture(pixels(n)), f"{quality[n]:.2f}, {faults[n]}, {about(n)}") for n in poor],
        "pairs": [
            {
                "first": (_picture(pixels(a)), about(a)),
                "second": (_picture(pixels(b)), about(b)),
                "correlation": f"{value:.2f}",
                "crosses": sides[a] != sides[b] and {sides[a], sides[b]} <= set(SIDES),
            }
            for a, b, value in offending_pairs(checked, split, PAIRS)
        ],
        "version": __version__,
    }
    html.write_page("data_page.html.jinja", page, out, thousands=lambda number: f"{number:,}")


def _picture(image: np.ndarray) -> str:
    return html.picture(image, _WIDTH)


def _augmented(recipe: Recipe, rows: datasets.Dataset, encoded: Encoded, chosen: np.ndarray) -> list[list[str]]:
    """Rows of pictures as the network gets them: the first as it is, the others as epochs change it."""
    size = recipe.model.image_size
    preprocessing, augmentation = Preprocessing(size, size), Augmentation(recipe.augment, recipe.train.seed)
    table = []
    for number in chosen:
        image = preprocessing.resize(to_gray(read_image(encoded[number])))
        content_hash = rows[int(number)]["content_hash"]
        draws = (augmentation(image, epoch, content_hash) for epoch in range(DRAWS))
        table.append([_picture(image), *map(_picture, draws)])
    return table


def _histogram(groups: dict[str, list[np.ndarray]]) -> list[dict]:
    """Share of the pixels at each gray level of several groups, as points of a line in a 256 x 100 box."""
    shares = {}
    for name, images in groups.items():
        if images:
            counted = np.mean([np.bincount(i.ravel(), minlength=256) / i.size for i in images], axis=0)
            shares[name] = counted.reshape(_BINS, -1).sum(1)
    # Black background would press everything else against the axis.
    top = max((share[1:].max() for share in shares.values()), default=1) or 1
    lines = []
    for number, (name, share) in enumerate(shares.items()):
        heights = 100 - 100 * np.minimum(share / top, 1)
        points = " ".join(f"{(i + 0.5) * 256 / _BINS:.1f},{h:.1f}" for i, h in enumerate(heights))
        lines.append({"name": name, "points": points, "colour": _COLOURS[number % len(_COLOURS)], "dash": number})
    return lines


def _per_patient(patients: list[str]) -> dict:
    counts = np.array(list(Counter(patients).values()))
    quarters = np.percentile(counts, [0, 25, 50, 75, 100]).round().astype(int).tolist()
    return dict(zip(("least", "quarter", "median", "three_quarters", "most"), quarters, strict=True))
