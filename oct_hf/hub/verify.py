"""Checks what a published model says of itself, from the repository's own files and, with the data at hand, anew.

Every number on the card is made again: the measured ones from predictions.parquet, the counts from split.csv, the
network's from the weights; all others must stand in run.json. What can't be made again by anyone, such as the training
time, is only as true as run.json.
"""

import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oct_hf import __version__
from oct_hf.data.duplicates import METHOD
from oct_hf.data.leakage import LINKS_FILE, Links, certificate
from oct_hf.data.splits import HELD_OUT, on_two_sides
from oct_hf.errors import ModelError, OCTError
from oct_hf.evaluation.faithfulness import best_method
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.report import can_draw
from oct_hf.hub.allowed import CODE_BRANCH
from oct_hf.hub.card import render_card
from oct_hf.hub.card_text import card_faults
from oct_hf.hub.claims import SOURCES, Claims, equal, flat, read_claims
from oct_hf.hub.download import Downloaded
from oct_hf.hub.fast import check_fast
from oct_hf.hub.figures import draw_figures
from oct_hf.hub.files import file_faults
from oct_hf.hub.repository import checksums
from oct_hf.inference.export import ONNX_TOLERANCE, can_export, onnx_probabilities
from oct_hf.inference.fast_files import ONNX_FILE
from oct_hf.inference.on_torch import probabilities_of

HEAT_TOLERANCE = 0.02  # of figures from 0 to 1 that are measured on heat maps
SAME_PIXELS = 1e-6  # between torch loaders, on one machine
SAFE = {"trust_remote_code": False, "use_safetensors": True}
ANOTHER_MACHINE = 1e-3  # between the publisher's machine and this one


@dataclass(frozen=True)
class Check:
    """One promise of a repository.

    Attributes:
        name: what was checked.
        note: what it was compared with, or why it wasn't.
        faults: one line for each untrue thing; empty where the promise holds.
        skipped: it couldn't be checked here.
    """

    name: str
    note: str
    faults: tuple[str, ...] = ()
    skipped: bool = False


def verify(
    model: Downloaded,
    predict: Callable[[Path], Predictions] | None = None,
    search: Callable[[Path, Links], list[str]] | None = None,
    explain: Callable[[Path, int], dict | None] | None = None,
) -> list[Check]:
    """Every check of a repository, in order; nothing of it is loaded before its files are known to be harmless.

    Args:
        model: what `download` gave.
        predict: predicts the data again, given the folder; without it, the image-by-image check is skipped.
        search: says where the data have other near-duplicates than these of the folder; likewise.
        explain: measures heat maps again on so many B-scans, given the folder; likewise.

    Raises:
        ModelError: it isn't a repository of this package.
        DataError: what `predict`, `search` or `explain` say of the data at hand.
    """
    claims = read_claims(model)
    faults = file_faults(model.folder, model.files, model.revision)
    checks = [Check("no code, no pickle", f"{len(model.files)} files", tuple(faults))]
    if faults:
        return checks
    for name, check in (
        ("checksums", _checksums),
        ("split", _split),
        ("numbers", _numbers),
        ("card", _card),
        ("figures", _figures),
        ("reference answers", _examples),
        ("loaders", _loaders),
        ("fast files", _fast_files),
    ):
        try:
            checks.append(check(claims))
        except (OCTError, KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
            # A file that can't be understood is a fault of the repository, not of the program.
            why = " ".join(str(error).split())[:300] or type(error).__name__
            checks.append(Check(name, "stopped", (f"{name}: {why}",)))
    for name, check in (
        ("images", lambda: _images(claims, predict)),
        ("near-duplicates", lambda: _near_duplicates(claims, search)),
        ("heat maps", lambda: _heat_maps(claims, explain)),
    ):
        try:
            checks.append(check())
        except ModelError as error:  # all else is wrong with the data given, which is no fault of the repository
            checks.append(Check(name, "stopped", (f"{name}: {error}",)))
    return checks


# --- files ---


def _checksums(claims: Claims) -> Check:
    found, said = checksums(claims.folder), claims.said["files"]
    if claims.model.revision == CODE_BRANCH:
        # This branch adds the class, and its name to config.json.
        found = {name: value for name, value in found.items() if name != "config.json" and not name.endswith(".py")}
        said = {name: value for name, value in said.items() if name != "config.json"}
    faults = [f"{name}: is missing" for name in said if name not in found]
    faults += [f"{name}: run.json doesn't know this file" for name in found if name not in said]
    faults += [
        f"{name}: changed since it was published (SHA-256 {found[name][:12]}…, run.json says {said[name][:12]}…)"
        for name in said
        if name in found and found[name] != said[name]
    ]
    return Check("checksums", f"{len(said)} files against run.json", tuple(faults))


# --- numbers ---


def _split(claims: Claims) -> Check:
    """No patient, file or near-duplicate on two sides, and the predictions are of exactly these images."""
    table, answers = claims.split, claims.answers
    faults = [
        f"split.csv: {kind} {value} is on {' and '.join(sides)}"
        for kind, column in (("patient", "patient_id"), ("file", "content_hash"))
        for value, sides in on_two_sides(table[column], table["side"]).items()
    ]
    hashes, patients, sides = (table[column] for column in ("content_hash", "patient_id", "side"))
    near = certificate(hashes, patients, sides, claims.links)["near_duplicates"]
    if near and near["pairs_on_two_sides"]:
        faults.append(f"{LINKS_FILE}: {near['pairs_on_two_sides']} of its pairs are on two sides")
    rows = zip(*(table[column] for column in ("content_hash", "patient_id", "label", "side")), strict=True)
    held_out = {row for row in rows if row[3] in HELD_OUT}
    predicted = set(zip(answers.hashes, answers.groups, answers.labels, answers.sides, strict=True))
    if len(predicted) != len(answers.hashes):
        faults.append("predictions.parquet: has an image twice")
    for row in sorted(held_out - predicted):
        faults.append(f"split.csv: image {row[0][:12]}… ({row[2]}, {row[3]}) has no such row in predictions.parquet")
    for row in sorted(predicted - held_out):
        faults.append(f"predictions.parquet: image {row[0][:12]}… ({row[2]}, {row[3]}) is not so in split.csv")
    groups = f"{len(set(table['patient_id']))} {claims.said['data']['grouped_by']}s"
    return Check("split", f"{len(table['side'])} images of {groups} on one side each", tuple(faults))


def _numbers(claims: Claims) -> Check:
    said, found = flat(claims.said), flat(claims.found)
    keys = [key for key in found if key.split(".")[0] in SOURCES]
    faults = [
        f"run.json: {key} is {said.get(key, 'missing')}, {SOURCES[key.split('.')[0]]} {found[key]}"
        for key in keys
        if not equal(said.get(key), found[key])
    ]
    faults += [f"run.json: {key} has no source" for key in said if key not in found]
    count = sum(isinstance(found[key], int | float) for key in keys)
    return Check("numbers", f"{count} numbers of run.json made again", tuple(faults))


def _card(claims: Claims) -> Check:
    text = (claims.folder / "README.md").read_text(encoding="utf-8")
    named = _repo_on_card(text)
    same_template = claims.said["package"] == __version__
    faults = card_faults(text, render_card(claims.found, named), whole=same_template)
    if claims.model.repo and named and named != claims.model.repo:
        faults.append(f"README.md: its code loads {named}, which is another repository than {claims.model.repo}")
    of = "every line" if same_template else f"tables and metadata (its text is of oct-hf {claims.said['package']})"
    return Check("card", f"{of} against what was made again", tuple(faults))


def _repo_on_card(text: str) -> str | None:
    start = 'pipeline("image-classification", model="'
    named = text.partition(start)[2].partition('"')[0]
    return named if named not in ("", ".") else None


def _figures(claims: Claims) -> Check:
    """Drawn again and compared pixel by pixel. Another matplotlib may place a letter otherwise: it must be the same."""
    figures = [name for name in claims.said["files"] if name.startswith("figures/")]
    if not figures:
        return Check("figures", "the repository has none", skipped=True)
    if not can_draw():
        return Check("figures", 'need matplotlib: pip install "oct-hf[figures]"', skipped=True)
    import matplotlib

    drew = claims.said["versions"].get("matplotlib")
    if drew != matplotlib.__version__:
        why = f"drawn by matplotlib {drew}, here is {matplotlib.__version__}; only their checksums were compared"
        return Check("figures", why, skipped=True)
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        draw_figures(Path(scratch), claims.found, claims.answers)
        for name in figures:
            if not (Path(scratch) / name).exists():
                faults.append(f"{name}: is not drawn from this run's numbers")
            elif not _same_picture(Path(scratch) / name, claims.folder / name):
                faults.append(f"{name}: shows something else than run.json's numbers")
    return Check("figures", f"{len(figures)} drawn again, pixel by pixel", tuple(faults))


def _same_picture(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return first.size == second.size and np.array_equal(np.asarray(first), np.asarray(second))


# --- the network ---


def _examples(claims: Claims) -> Check:
    """The network's answers to the repository's own pictures: other weights give others."""
    said = claims.said["examples"]
    if not said:
        return Check("reference answers", "the repository has no pictures", skipped=True)
    if strange := [name for name in said if not re.fullmatch(r"examples/[^/\\]+", name)]:
        raise ValueError(f"run.json: {strange[0]!r:.80} is no picture in examples/")
    answers = claims.predictor.predict(claims.folder / name for name in said)
    faults, worst = [], 0.0
    for (name, expected), answer in zip(said.items(), answers, strict=True):
        found = answer.probabilities or {}
        off = max(abs(expected[k] - found[k]) for k in expected) if expected.keys() == found.keys() else math.inf
        worst = max(worst, off)
        if not off <= ANOTHER_MACHINE:
            faults.append(f"{name}: the weights answer {_short(found)}, run.json says {_short(expected)}")
    return Check("reference answers", f"{len(said)} pictures, at most {worst:.0e} apart", tuple(faults))


def _loaders(claims: Claims) -> Check:
    """The same pixels through each library installed here."""
    import timm
    from transformers import AutoModelForImageClassification

    preprocessing, several = claims.predictor.preprocessing, claims.predictor.several
    size = (preprocessing.height, preprocessing.width)
    pixels = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = claims.predictor.probabilities(pixels.numpy())

    def ask(network) -> np.ndarray:
        with torch.inference_mode():
            answer = network.eval()(pixels)
        return probabilities_of(getattr(answer, "logits", answer), several).numpy()

    found = {}
    if "code" not in claims.found["model"]:
        found["transformers"] = ask(AutoModelForImageClassification.from_pretrained(claims.folder, **SAFE)), SAME_PIXELS
        found["timm"] = ask(timm.create_model(f"local-dir:{claims.folder}", pretrained=True)), SAME_PIXELS
    if claims.said["onnx"] == "yes" and can_export():
        found["onnxruntime"] = onnx_probabilities(claims.folder / ONNX_FILE, pixels.numpy(), several), ONNX_TOLERANCE
    if not found:
        return Check("loaders", "timm and transformers lack this network, and there is no ONNX file", skipped=True)
    off = {name: float(np.abs(answer - expected).max()) for name, (answer, _) in found.items()}
    faults = [
        f"{name}: its probabilities are {off[name]:.1e} from oct-hf's, {tolerance:.0e} is allowed"
        for name, (_, tolerance) in found.items()
        if not off[name] <= tolerance
    ]
    apart = ", ".join(f"{name} {value:.0e}" for name, value in off.items())
    return Check("loaders", f"apart from oct-hf: {apart}", tuple(faults))


def _fast_files(claims: Claims) -> Check:
    said = claims.said.get("fast")
    if not said:
        return Check("fast files", "the repository has none", skipped=True)
    note, faults, skipped = check_fast(claims.folder, claims.found["fast"], claims.predictor)
    return Check("fast files", note, tuple(faults), skipped)


def _images(claims: Claims, predict: Callable[[Path], Predictions] | None) -> Check:
    """The data predicted again, image by image."""
    if predict is None:
        return Check("images", "no data at hand; --data PATH predicts it again", skipped=True)
    published, again = claims.answers, predict(claims.folder)
    if published.truth is not None and again.truth is None:
        return Check("images", "", ("the data given doesn't say which signs its pictures show",))
    row = {value: index for index, value in enumerate(again.hashes)}
    faults, worst, missing = [], 0.0, 0
    for index, value in enumerate(published.hashes):
        if value not in row:
            missing += 1
            continue
        label, off = again.labels[row[value]], again.probabilities[row[value]] - published.probabilities[index]
        worst = max(worst, float(np.abs(off).max()))
        if label != published.labels[index]:
            faults.append(f"image {value[:12]}…: published as {published.labels[index]}, in the data it is {label}")
        shows = None if again.truth is None else again.truth[row[value]]
        if published.truth is not None and shows is not None and not np.array_equal(published.truth[index], shows):
            shown = ", ".join(name for name, there in zip(again.names, shows, strict=True) if there)
            faults.append(f"image {value[:12]}…: its published signs are untrue, it shows {shown or 'none'}")
        if not np.abs(off).max() <= ANOTHER_MACHINE:
            faults.append(f"image {value[:12]}…: its published probabilities are {np.abs(off).max():.3f} off")
    if missing:
        faults.append(f"{missing} of the {len(published.hashes)} predicted images are not in the data given")
    return Check("images", f"{len(row)} predicted again, at most {worst:.0e} apart", tuple(faults))


def _near_duplicates(claims: Claims, search: Callable[[Path, Links], list[str]] | None) -> Check:
    """The data searched for near-duplicates again."""
    name, said = "near-duplicates", claims.said["split"]["certificate"].get("near_duplicates")
    if search is None or not said or not said["method"].startswith(METHOD):
        why = "no data at hand; --data PATH searches it again" if search is None else "searched for otherwise, or not"
        return Check(name, why, skipped=True)
    assert claims.links is not None  # `said` has them
    faults = search(claims.folder, claims.links)
    return Check(name, f"{len(claims.links.pairs)} pairs, searched for again", tuple(faults))


def _heat_maps(claims: Claims, explain: Callable[[Path, int], dict | None] | None) -> Check:
    """The heat maps measured again, and the best method by what run.json says of all."""
    name, said = "heat maps", claims.said["explanations"]
    if said is None:
        return Check(name, "none were measured", skipped=True)
    best = best_method(said)
    faults = [] if best == said["method"] else [f"run.json: explanations.method is {said['method']}, by rule {best}"]
    if explain is None:
        return Check(name, "no data at hand; --data PATH measures them again", tuple(faults), skipped=not faults)
    found = explain(claims.folder, said["settings"]["images"])
    if found is None:
        return Check(name, 'need captum and grad-cam: pip install "oct-hf[explain]"', tuple(faults), skipped=not faults)
    then, now = (flat(content) for content in (said, found))
    faults += [
        f"run.json: explanations.{key} is {then.get(key, 'missing')}, measured again {now.get(key, 'nothing')}"
        for key in then.keys() | now.keys()
        if not _close(then.get(key), now.get(key))
    ]
    return Check(name, f"{len(said['methods'])} methods measured again", tuple(sorted(faults)))


# --- comparing ---


def _close(one, other) -> bool:
    """Equal but for what another machine's rounding moves in a map."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= HEAT_TOLERANCE
    return type(one) is type(other) and one == other


def _short(answer: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in answer.items()) or "nothing"
