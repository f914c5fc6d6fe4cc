"""Which B-scan is for training, validation and test: stratified by class, and no patient on two sides.

A patient is placed whole, largest first, where class counts then fit best; several seeded orders are tried and the best
kept. scikit-learn's StratifiedGroupKFold makes folds of equal size, and sides aren't of one size.
"""

import contextlib
import csv
import hashlib
import hmac
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from oct_hf.errors import DataError

SIDES = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
Strings = Sequence[str] | np.ndarray  # one for each image
UNUSED = "unused"  # guards, and patients that a published test side also has
COLUMNS = ("content_hash", "patient_id", "label", "side")
MEMBERS_FILE = "members.csv"  # of an ensemble: what else its members learned from, in the same columns
KEY_FILE = Path(os.environ.get("OCT_HF_HOME", Path.home() / ".config" / "oct-hf")) / "patient.key"
_ORDERS = 4  # seeded orders that are tried
_PASSES = 20  # over all patients, each moved where it then fits best, until none moves


def split_by_patient(
    labels: Sequence[str],
    patients: Sequence[str],
    fractions: dict[str, float] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Sides of `n` images, disjoint by patient and stratified by class.

    The result depends on the patients' ids, labels and `seed` alone, not on the order of the images.

    Args:
        labels: `n` labels.
        patients: `n` patient ids; one patient may have several labels.
        fractions: share of the images of each side, summing to 1; 0.7, 0.15 and 0.15 where not given.
        seed: another seed gives another split.

    Returns:
        `n` strings out of the keys of `fractions`.

    Raises:
        DataError: an image without a patient, or a class with too few patients for every side to have one.
    """
    fractions = fractions or {"train": 0.7, "validation": 0.15, "test": 0.15}
    sides = list(fractions)
    _require_patients(patients)
    classes = sorted(set(labels))
    ids = sorted(set(patients))
    row, column = {p: i for i, p in enumerate(ids)}, {c: i for i, c in enumerate(classes)}
    counts = np.zeros((len(ids), len(classes)))
    for patient, label in zip(patients, labels, strict=True):
        counts[row[patient], column[label]] += 1
    for c, name in enumerate(classes):
        having = int((counts[:, c] > 0).sum())
        if having < len(sides):
            raise DataError(
                f"class {name} has {having} patient(s); each of {', '.join(sides)} needs at least one, "
                f"and a patient can't be on two sides"
            )
    # Images and patients count alike, so that one patient with many images doesn't stand for a class alone.
    wanted = np.concatenate([counts / counts.sum(0), (counts > 0) / (counts > 0).sum(0)], axis=1)
    share = np.array([fractions[s] for s in sides])
    best, best_miss = None, np.inf
    for order_seed in np.random.SeedSequence(seed).spawn(_ORDERS):
        placed, miss = _place(wanted, share, np.random.default_rng(order_seed))
        if miss < best_miss and all((counts[placed == s] > 0).any(0).all() for s in range(len(sides))):
            best, best_miss = placed, miss
    if best is None:
        raise DataError(
            f"no split into {', '.join(sides)} gives each side every class: "
            f"too few patients, or too many of them with several classes"
        )
    return np.array([sides[best[row[p]]] for p in patients])


def _place(wanted: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Side of each patient and the squared miss of the targets. `wanted`: patients x shares of each class."""
    order = rng.permutation(len(wanted))
    order = order[np.argsort(-wanted[order].max(1), kind="stable")]
    room = np.repeat(share[:, None], wanted.shape[1], axis=1)
    has = (wanted[:, : wanted.shape[1] // 2] > 0).astype(int)  # patients x classes
    have = np.zeros((len(share), has.shape[1]), int)  # patients of each class on each side
    placed = np.full(len(wanted), -1)
    for _ in range(_PASSES):
        before = placed.copy()
        for patient in order:
            if placed[patient] >= 0:
                room[placed[patient]] += wanted[patient]
                have[placed[patient]] -= has[patient]
            # Placing w where r is free changes the squared miss by w² - 2rw; a class that a side lacks comes first.
            cost = (wanted[patient] ** 2 - 2 * room * wanted[patient]).sum(1) - 10 * ((have == 0) @ has[patient])
            side = placed[patient] = int(np.argmin(cost))
            room[side] -= wanted[patient]
            have[side] += has[patient]
        if np.array_equal(before, placed):
            break
    return placed, float((room**2).sum())


def split_folds(labels: Strings, patients: Strings, folds: int, seed: int = 0) -> np.ndarray:
    """Folds of `n` images for cross-validation, disjoint by patient and stratified by class.

    By scikit-learn's StratifiedGroupKFold; where that leaves a fold without a class, by the placing of
    `split_by_patient`. The order of the images doesn't matter.

    Args:
        labels, patients: `n` strings each.
        folds: how many.
        seed: another one gives other folds.

    Returns:
        `n` strings, "0" to `folds - 1`.

    Raises:
        DataError: an image without a patient, or a class with fewer patients than folds.
    """
    _require_patients(patients)
    labels, patients = np.array(labels), np.array(patients)
    order = np.lexsort((labels, patients))
    result = np.empty(len(labels), "<U4")
    maker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(), contextlib.suppress(ValueError):  # it warns of, or refuses, a small class
        warnings.simplefilter("ignore")
        for number, (_, held_out) in enumerate(maker.split(labels[order], labels[order], patients[order])):
            result[order[held_out]] = str(number)
    classes = set(labels)
    if all(set(labels[result == str(number)]) == classes for number in range(folds)):
        return result
    shares = {str(number): 1 / folds for number in range(folds)}
    return split_by_patient(labels.tolist(), patients.tolist(), shares, seed)


def split_by_image(labels: Strings, fractions: dict[str, float], seed: int = 0) -> np.ndarray:
    """Sides of `n` images at random within each class, whoever their patient is: what an honest split is compared with.

    Args:
        labels: `n` labels.
        fractions: share of the images of each side.
        seed: another one gives another split.
    """
    labels, sides = np.array(labels), np.empty(len(labels), "<U10")
    rng, borders = np.random.default_rng(seed), np.cumsum([0.0, *fractions.values()])
    for label in sorted(set(labels)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(borders * len(rows)).astype(int)
        for side, start, end in zip(fractions, ends, ends[1:], strict=False):
            sides[rows[start:end]] = side
    return sides


def split_by_fold(
    labels: Strings,
    patients: Strings,
    folds: Strings,
    test: str,
    validation: float | str = 0.15,
    seed: int = 0,
) -> np.ndarray:
    """Sides where the data set itself says what is held out: a fold of its CSV, or its published test side.

    Images of fold "guard" are on no side. Nor are images that would put a patient of the held-out fold into training.

    Args:
        labels, patients, folds: `n` strings each.
        test: the fold that is held out.
        validation: another fold, or the share of the remaining images to take, by patient.
        seed: for that share.

    Returns:
        `n` strings: train, validation, test or unused.

    Raises:
        DataError: no such fold, or too few patients.
    """
    _require_patients(patients)
    labels, patients, folds = np.array(labels), np.array(patients), np.array(folds)
    known = sorted(set(folds) - {"guard", ""})
    for fold in [test, *([validation] if isinstance(validation, str) else [])]:
        if fold not in known:
            there = ", ".join(known) or "none: split.by=patient holds out patients instead"
            raise DataError(f'no fold "{fold}"; the data set has {there}')
    sides = np.full(len(labels), UNUSED, dtype="<U10")
    sides[folds == test] = "test"
    rest = (folds != test) & (folds != "guard") & ~np.isin(patients, patients[folds == test])
    if isinstance(validation, str):
        sides[folds == validation] = "validation"
        sides[np.isin(patients, patients[folds == test]) & (sides == "validation")] = UNUSED
        sides[rest & (sides == UNUSED) & ~np.isin(patients, patients[folds == validation])] = "train"
    else:
        fractions = {"train": 1 - validation, "validation": validation}
        sides[rest] = split_by_patient(labels[rest].tolist(), patients[rest].tolist(), fractions, seed)
    for side in SIDES:
        missing = sorted(set(labels) - set(labels[sides == side]))
        if missing:
            raise DataError(f"with fold {test} held out, {side} has no image of {', '.join(missing)}")
    return sides


def check_disjoint(patients: Sequence[str], sides: Strings, hashes: Sequence[str], volumes: Sequence[str] = ()) -> None:
    """Raises DataError where a patient, a file or a volume is on two sides. Called on every split before it is used."""
    for kind, values in (("patient", patients), ("file", hashes), ("volume", volumes)):
        for value, found in (on_two_sides(values, sides) if values else {}).items():
            raise DataError(f"{kind} {value} is on two sides, {' and '.join(found)}")


def on_two_sides(values: Sequence[str], sides: Strings) -> dict[str, list[str]]:
    """Every patient, file or volume that is on more than one side, and which; `unused` is none.

    Args:
        values: `n` patients, content hashes or volumes; an empty text is none.
        sides: `n` sides.
    """
    seen: dict[str, list[str]] = {}
    for value, side in zip(values, sides, strict=True):
        if value and side != UNUSED and side not in seen.setdefault(value, []):
            seen[value].append(side)
    return {value: found for value, found in seen.items() if len(found) > 1}


def count_sides(labels: Strings, patients: Strings, sides: Strings, names: Sequence[str]) -> dict:
    """Images, patients (groups) and images of each class on each side that has any."""
    labels, patients, sides = np.array(labels), np.array(patients), np.array(sides)
    counts = {}
    for side in (*SIDES, UNUSED):
        rows = sides == side
        if rows.any():
            counts[side] = {
                "images": int(rows.sum()),
                "groups": len(set(patients[rows])),
                "classes": {name: int((labels[rows] == name).sum()) for name in names},
            }
    return counts


def fingerprint(hashes: Strings, patients: Strings, labels: Strings) -> str:
    """SHA-256 over every image's content hash, patient (as published) and label, in sorted order."""
    rows = sorted(zip(hashes, patients, labels, strict=True))
    return hashlib.sha256("\n".join("\t".join(row) for row in rows).encode()).hexdigest()


def write_split(path: Path, hashes: Sequence[str], patients: Sequence[str], labels: Sequence[str], sides) -> None:
    """Writes split.csv, sorted by content hash: the exact split, for whoever has the same files."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(zip(hashes, patients, labels, sides, strict=True)))


def read_split_table(path: str | Path) -> dict[str, list[str]]:
    """The columns of a split.csv: `content_hash`, `patient_id`, `label` and `side`, each with one string an image.

    Raises:
        DataError: it isn't such a file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = {column: [row[column] for row in rows] for column in COLUMNS}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a split.csv with the columns {', '.join(COLUMNS)} ({error!r})") from None
    strange = sorted({str(side) for side in table["side"]} - {*SIDES, UNUSED})
    if strange:
        raise DataError(f"{path}: side {strange[0]!r}; known: {', '.join((*SIDES, UNUSED))}")
    return table


def learned_from(folder: Path) -> dict[str, tuple[str, str]]:
    """Patient and label, by content hash, of every image that the weights of a model's folder have learned from.

    Raises:
        DataError: no split.csv in it.
    """
    more = folder / MEMBERS_FILE
    tables = [read_split_table(file) for file in (folder / "split.csv", *([more] if more.exists() else []))]
    return {
        digest: (patient, label)
        for table in tables
        for digest, patient, label, side in zip(*(table[column] for column in COLUMNS), strict=True)
        if side == "train"
    }


def read_split(path: str | Path, hashes: Sequence[str]) -> np.ndarray:
    """Sides of the images with these content hashes, as a split.csv has them; images it doesn't know are unused.

    Raises:
        DataError: it isn't such a file, or knows none of the images.
    """
    table = read_split_table(path)
    known = dict(zip(table["content_hash"], table["side"], strict=True))
    sides = np.array([known.get(h, UNUSED) for h in hashes])
    for side in SIDES:
        if not (sides == side).any():
            raise DataError(f"{path}: of the {len(sides)} images given, none is on its {side} side; other files?")
    return sides


def pseudonyms(patients: Sequence[str], key_file: Path | None = None) -> list[str]:
    """Ids that may be published: HMAC-SHA256 of each patient id with a key that stays on this machine.

    Args:
        patients: ids as the data set has them.
        key_file: read, or made with 32 random bytes and for this user alone; `KEY_FILE` where not given.

    Returns:
        16 hexadecimal digits for each id; equal ids stay equal.
    """
    key_file = key_file or KEY_FILE
    if not key_file.exists():
        key_file.parent.mkdir(parents=True, exist_ok=True)
        key_file.touch(mode=0o600)
        key_file.write_bytes(secrets.token_bytes(32))
    key = key_file.read_bytes()
    return [hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16] for patient in patients]


def _require_patients(patients: Strings) -> None:
    unknown = sum(not p for p in patients)
    if unknown:
        raise DataError(f"{unknown} image(s) have no patient id, so no split can keep patients apart")
