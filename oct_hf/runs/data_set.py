"""publish_data(): a recipe's B-scans as a data set on the Hub, with the very split that its fine-tuning uses.

`write_data_set` is the one place that decides what a published data set contains. Rows are ordered by content hash:
classes come mixed when streamed, and neither the order of files nor that of patients' names shows through.
"""

import dataclasses
import datetime
import errno
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi

from oct_hf import __version__
from oct_hf.data.leakage import certificate
from oct_hf.data.shards import SHARD_BYTES, write_shards
from oct_hf.data.splits import SIDES, UNUSED, fingerprint
from oct_hf.errors import DataError
from oct_hf.hub.croissant import croissant, date_of
from oct_hf.hub.data_card import render_data_card
from oct_hf.hub.licences import require_redistributable
from oct_hf.hub.publish import Published
from oct_hf.hub.publish_data import CROISSANT_FILE, FACTS_FILE, building_folder, contents, publish_data_folder
from oct_hf.runs.labelled import LabelledSet, assign_sides, is_public, load_data, one_label_only
from oct_hf.runs.published_rows import Pictures, features_of, fold_names, published_columns, published_rows
from oct_hf.training.recipe import DataRecipe, Recipe
from oct_hf.whole import write_json

PHANTOM_LICENCE = "apache-2.0"  # this package's own, as it draws them


def publish_data(
    recipe: Recipe,
    repo: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    private: bool = False,
) -> Published:
    """Uploads the data set that a recipe names, as Parquet shards with card and Croissant metadata, in one commit.

    Args:
        recipe: its `data` and `split` say which B-scans and sides; its `data.license` must allow redistribution.
        repo: `you/name`, of type dataset.
        token: the one that `hf auth login` stored, where not given.
        endpoint: of another Hub than huggingface.co.
        private: for a new repository.

    Returns:
        what was done; publishing the same data again sends nothing.

    Raises:
        DataError: a licence that forbids it, files or a split that aren't as they must be, or no room on the disk.
        PublishError: refused or unreachable, in one line.
    """
    data, skipped = load_for_publishing(recipe)

    def build(folder: Path, url: str, previous: dict | None) -> str:
        facts = write_data_set(data, recipe, skipped, folder, repo, url, previous)
        return f"{facts['title']}: {facts['images']} B-scans of {facts['groups']} {facts['grouped_by']}s"

    return publish_data_folder(build, repo, token=token, endpoint=endpoint, private=private)


def dry_run(recipe: Recipe, repo: str, out: Path | None = None) -> dict[str, int]:
    """What `publish_data` would send, as sizes in bytes by path; builds everything and sends nothing.

    Args:
        recipe, repo: as for `publish_data`.
        out: a new folder to keep what was built, to be looked at; it is thrown away where not given.

    Raises:
        DataError: as `publish_data`, or `out` is there already.
    """
    if out is not None and out.exists():
        raise DataError(f"{out} is there already; name a new folder")
    data, skipped = load_for_publishing(recipe)
    with building_folder() as folder:
        write_data_set(data, recipe, skipped, folder, repo, f"{HfApi().endpoint}/datasets/{repo}")
        sizes = {name: path.stat().st_size for name, path in contents(folder).items()}
        if out is not None:
            partial = out.with_name(out.name + ".partial")
            with _room_for(partial):
                shutil.copytree(folder, partial, dirs_exist_ok=True)
            partial.rename(out)
    return sizes


def load_for_publishing(recipe: Recipe) -> tuple[LabelledSet, list[dict]]:
    """The B-scans and sides that a fine-tuning of the recipe uses, and the files left out.

    Raises:
        DataError: the licence doesn't allow publishing, which is asked before any file is read; or as `load_data`.
    """
    one_label_only(recipe.data, "a published data set")
    require_redistributable(_licence(recipe.data))
    if recipe.split.by == "image":
        raise DataError("split.by is image: a data set is published with a split that keeps patients apart")
    dataset, skipped = load_data(recipe.data)
    return assign_sides(dataset, recipe), skipped


def write_data_set(
    data: LabelledSet,
    recipe: Recipe,
    skipped: list[dict],
    folder: Path,
    repo: str,
    url: str,
    previous: dict | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Writes a data set's repository: `data/*.parquet`, README.md, croissant.json and oct-hf.json.

    Args:
        data: the B-scans with their sides.
        recipe: says what is known of the data, and whether it is public.
        skipped: the files left out.
        folder: empty.
        repo, url: id and address that it will have.
        previous: the croissant.json that is published there now; its date stays while the shards stay the same.
        shard_bytes: pictures of one shard.

    Returns:
        the facts, as oct-hf.json has them.

    Raises:
        DataError: there is no room on the disk.
    """
    with _room_for(folder):
        columns, pictures = published_columns(data, recipe.data), Pictures(data, recipe.data)
        features = features_of(data.names, columns)
        order = np.argsort(data.hashes, kind="stable")
        shards = []
        for side in (*SIDES, UNUSED):
            rows = published_rows(order[data.sides[order] == side], columns, pictures, side)
            shards += write_shards(rows, features, folder, side, shard_bytes)
        facts = _facts(data, recipe, skipped, columns, pictures.seen, repo)
        facts["shards"] = [dataclasses.asdict(shard) for shard in shards]
        date = date_of(previous, facts) or datetime.datetime.now(datetime.UTC).date().isoformat()
        write_json(folder / FACTS_FILE, facts)
        write_json(folder / CROISSANT_FILE, croissant(facts, url, date))
        (folder / "README.md").write_text(render_data_card(facts, features, repo), encoding="utf-8")
        return facts


@contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """One line where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        raise DataError(
            f"no room to build the data set: {size:,} bytes were written below {folder.parent} when it was full; "
            "free some room, or set HF_DATASETS_CACHE to a larger disk"
        ) from None


def _facts(
    data: LabelledSet, recipe: Recipe, skipped: list[dict], columns: dict[str, list], seen: dict, repo: str
) -> dict:
    """oct-hf.json: all that the card says, counted from the rows; no path and no name of a file."""
    about, split = recipe.data, recipe.split
    labels, patients = np.array(data.labels), np.array(data.patients)
    pairs = set(zip(data.patients, data.labels, strict=True))
    sides = {}
    for side in (*SIDES, UNUSED):
        here = data.sides == side
        if here.any():
            classes = {name: _count(patients[here & (labels == name)]) for name in data.names}
            sides[side] = {**_count(patients[here]), "classes": classes}
    test_fold = None
    if split.by == "fold" and split.test_fold is not None:
        test_fold = fold_names(data.dataset["fold"][:], data.hashes, about)[split.test_fold]
    return {
        "format": 1,
        "package": __version__,
        "name": about.name,
        "title": about.title or ("OCT phantoms (drawn)" if about.name == "phantom" else repo.split("/")[-1]),
        "homepage": about.homepage,
        "license": _licence(about),
        "citation": about.citation,
        "public": is_public(about),
        "grouped_by": about.grouped_by,
        "labels": data.names,
        "columns": ["image", *columns],
        "folds": sorted(set(columns.get("fold", [])) - {""}, key=lambda fold: (len(fold), fold)),
        **_count(patients),
        "mixed": sum(classes > 1 for classes in Counter(patient for patient, _ in pairs).values()),
        "left_out": len(skipped),
        "fingerprint": fingerprint(data.hashes, data.patients, data.labels),
        "split": {"by": split.by, "test_fold": test_fold, "seed": split.seed},
        "certificate": certificate(data.hashes, data.patients, data.sides, data.links),
        "sides": sides,
        "pictures": {
            "formats": dict(seen["formats"].most_common()),
            "sizes": dict(sorted(seen["sizes"].items(), key=lambda item: (-item[1], item[0]))),
            "original": seen["original"],
            "eyes": sum(map(bool, data.dataset["eye"][:])),
        },
    }


def _count(patients: np.ndarray) -> dict:
    return {"images": len(patients), "groups": len(set(patients))}


def _licence(data: DataRecipe) -> str | None:
    return data.license or (PHANTOM_LICENCE if data.name == "phantom" else None)
