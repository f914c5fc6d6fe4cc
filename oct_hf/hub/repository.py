"""write_repository(): the one place that decides what a published folder contains.

The folder is written beside its final place and renamed when it is whole, so a reader never sees half of one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from oct_hf.data import phantom
from oct_hf.data.corrections import NAME as CORRECTIONS
from oct_hf.data.corrections import Correction, write_corrections
from oct_hf.data.leakage import LINKS_FILE, Links, write_links
from oct_hf.data.splits import MEMBERS_FILE, write_split
from oct_hf.errors import ModelError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.report import can_draw
from oct_hf.hub.allowed import check_allowed
from oct_hf.hub.card import render_card
from oct_hf.hub.fast import fast_facts
from oct_hf.hub.figures import draw_figures
from oct_hf.hub.kinds import kind_of
from oct_hf.images import Preprocessing
from oct_hf.inference.export import can_export, write_onnx
from oct_hf.inference.export_gray import write_gray_onnx
from oct_hf.inference.fast_files import GRAY_ONNX, ONNX_FILE
from oct_hf.inference.predictor import Predictor
from oct_hf.labels import COARSER
from oct_hf.whole import file_sha256, whole_folder


def write_repository(
    target: Path,
    model,
    preprocessing: Preprocessing,
    predictions: Predictions,
    split: dict,
    run: dict,
    recipe_yaml: str,
    links: Links | None = None,
    corrections: Sequence[Correction] = (),
    elsewhere: dict | None = None,
) -> dict:
    """Writes a model repository as the Hub will hold it.

    Args:
        target: the folder; an older one there is replaced once the new one is whole.
        model: an `OCTForImageClassification` on the CPU.
        preprocessing: of its input.
        predictions: on the validation and test sides.
        split: `hashes`, `patients`, `labels` and `sides` of all images, as they may be published.
        run: the facts for run.json and the card; its results must have been computed from `predictions`.
        recipe_yaml: the recipe, without paths of this machine.
        links: near-duplicates across patients, where they were searched for.
        corrections: of the data's labels; a rerun needs them, so they are published, without their remarks.
        elsewhere: like `split`, the images that an ensemble's members learned from and that the data don't have.

    Returns:
        the content of its run.json: `run` with the model's answers to the example pictures, whether there are ONNX
        files or why not, the sizes of the fast ones, and the SHA-256 of every file but README.md and run.json.

    Raises:
        RunError: something that may not be published got into the folder.
    """
    with whole_folder(target) as partial:
        model.save_pretrained(partial)
        preprocessing.save(partial)
        predictions.write(partial / "predictions.parquet")
        write_split(partial / "split.csv", **split)
        if links is not None:
            write_links(partial / LINKS_FILE, links)
        (partial / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
        if elsewhere:
            write_split(partial / MEMBERS_FILE, **elsewhere)
        if corrections:
            write_corrections(partial / CORRECTIONS, corrections)
        if can_draw():
            draw_figures(partial, run, predictions)
        examples = write_examples(partial, kind_of(run).example_labels(run))
        answers = Predictor(model, preprocessing, device="cpu").predict(partial / name for name in examples)
        run = run | {
            "examples": {name: answer.probabilities for name, answer in zip(examples, answers, strict=True)},
            **_export(model, preprocessing, partial),
            "fast": fast_facts(partial, predictions),
            "files": checksums(partial),
        }
        (partial / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(render_card(run), encoding="utf-8")
        check_allowed(partial)
    return run


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but README.md and run.json, by its path in the folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in ("README.md", "run.json"):
            found[name] = file_sha256(path)
    return found


def _export(model, preprocessing: Preprocessing, folder: Path) -> dict[str, str]:
    """Writes the ONNX files; `onnx` and `gray_onnx` are "yes", or why there is none. A finished training isn't lost
    over it. The fast file is made of the other in a second; those of OpenVINO and int8 a user asks for."""
    if not can_export():
        return dict.fromkeys(("onnx", "gray_onnx"), "the extra onnx was not installed")
    try:
        write_onnx(model, folder / ONNX_FILE)
    except ModelError as error:
        (folder / ONNX_FILE).unlink(missing_ok=True)
        return dict.fromkeys(("onnx", "gray_onnx"), str(error))
    try:
        write_gray_onnx(model, preprocessing, folder / GRAY_ONNX, folder / ONNX_FILE)
    except ModelError as error:
        return {"onnx": "yes", "gray_onnx": str(error)}
    return {"onnx": "yes", "gray_onnx": "yes"}


def write_examples(folder: Path, labels: list[str]) -> list[str]:
    """Phantoms for the Hub's widget, one a label that has one: nobody's eye, so they may be published.

    Returns:
        their paths inside the folder.
    """
    drawn = {coarser: name for name in phantom.LABELS for coarser in COARSER.get(name, ())}
    drawn |= {name: name for name in phantom.LABELS}
    paths = []
    for label in labels:
        if label in drawn:
            (folder / "examples").mkdir(exist_ok=True)
            paths.append(f"examples/{label}.png")
            # A seed that no training set of phantoms uses.
            Image.fromarray(phantom.draw(drawn[label], seed=2**31).image).save(folder / paths[-1], optimize=True)
    return paths
