"""A folder of JPEGs to a table of probabilities, against the network alone and against transformers' pipeline.

Every backend that the model has a file for is measured in a process of its own, the pipeline at its three settings in
processes of theirs, all in turn and several times over; what counts are the ratios of one turn.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.material import ENVIRONMENT, WATCH, bscans, has, median

TURNS = 3
PEERS = ("fp32, batch 1", "fp32, batch 16", "bf16, batch 16")
SAME = "fp32 on pillow, batch 16"  # whose pixels are ours; by default the pipeline resizes with torchvision
PEER_IMAGES = 400  # of the pipeline, which needs no longer to show its pace
# What a backend's probabilities may be from fp32's: of arithmetic in float32, and of what is allowed to differ.
EXACT, NEAR = 1e-4, 5e-3

OURS = """
import json, sys, time
from itertools import islice
from pathlib import Path
backend, model, folder, scratch, seconds = *sys.argv[1:5], float(sys.argv[5])
import numpy as np
from oct_hf.images import to_gray
from oct_hf.inference.bulk import answer
from oct_hf.inference.choice import images_per_second
from oct_hf.inference.inputs import stream, survey
from oct_hf.inference import table
from oct_hf.inference.predictor import Predictor
from oct_hf.inference.recorded import recorded_gate
from oct_hf.inference.results import Journal

began = time.perf_counter()
count = survey([folder]).count
predictor = Predictor(model, backend=backend, images=count)
opened = time.perf_counter() - began
first = [one.read() for one in islice(stream([folder]), 0, 5 * predictor.batch_size, 5)]  # of every kind
grays = np.stack([predictor.preprocessing.resize(to_gray(one)) for one in first])
out = Path(scratch) / "answers.parquet"

def to_parquet():
    began = time.perf_counter()
    with Journal(out, {}, overwrite=True) as journal:
        for one in answer(predictor, stream([folder]), "mean"):
            journal.add(one.name, one.rows)
        journal.finish(table.columns(predictor.labels))
    return count / (time.perf_counter() - began)

alone = [images_per_second(predictor.network, grays, seconds)]
bare = to_parquet()
alone.append(images_per_second(predictor.network, grays, seconds))
predictor.gate = recorded_gate(model, predictor.labels)
gated = to_parquet() if predictor.gate else None
answers, predictor.gate = out.read_bytes(), None
predictor.network.of_prepared = lambda prepared: np.full((len(prepared), len(predictor.labels)), 0.5)
idle = to_parquet()
out.write_bytes(answers)
alone = sum(alone) / 2
print(json.dumps({
    "alone": alone, "without_network": idle, "to_parquet": bare, "with_gate": gated, "opened_s": opened,
    "possible": 1 / (1 / alone + 1 / idle),
}))
"""

PIPELINE = """
import json, os, sys, time, warnings
kind, model, folder, count, answers = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5]
warnings.simplefilter("ignore")
import torch
from transformers import AutoImageProcessor, pipeline
files = sorted(os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)[:count]
processor = AutoImageProcessor.from_pretrained(model, backend="pil") if "pillow" in kind else None
classify = pipeline("image-classification", model=model, image_processor=processor, top_k=None)
batch = int(kind.rpartition(" ")[2])
with torch.autocast("cpu", torch.bfloat16, enabled=kind.startswith("bf16")):
    classify(files[:16], batch_size=batch)
    began = time.perf_counter()
    found = classify(files, batch_size=batch)
    took = time.perf_counter() - began
rows = [{one["label"]: one["score"] for one in row} for row in found]
with open(answers, "w") as file:
    json.dump(dict(zip(files, rows)), file)
print(json.dumps({"per_s": len(files) / took}))
"""

MEMORY = (
    """
import json, sys
from pathlib import Path
folder, model, out = sys.argv[1:]
"""
    + WATCH
    + """
sys.argv = ["oct-hf", "predict", folder, "--model", model, "--backend", "onnx", "--out", out, "--overwrite"]
from oct_hf.cli import main
try:
    main()
except SystemExit as ended:  # as every command ends
    if ended.code:
        raise
print(most)
"""
)


def benchmark_inference(
    folder: Path | None, model: Path, scratch: Path, images: int, backends: list[str] | None = None
) -> dict:
    """Images a second of each backend and of the pipeline, the ratios of each turn, and how far answers are apart.

    `alone` is the network on pictures in memory, `without_network` all else: reading, decoding, resizing, writing.
    Both want every core, so that no more than `possible` can be reached where one is done beside the other.

    Args:
        folder: with JPEG B-scans; phantoms where not given.
        model: a model folder with its fast files.
        scratch: for files.
        images: how many files; those of the folder are repeated.
        backends: all that the model has a file for, where not given.
    """
    from oct_hf.inference.backends import BACKENDS

    place = spread(bscans(folder), scratch / "scans", images)
    backends = [name for name in backends or BACKENDS if name == "torch" or has(model, name)]
    answers, turns, off, agree = scratch / "pipeline.json", [], {}, {}
    few = min(images, PEER_IMAGES)
    _run(PIPELINE, SAME, model, place, few, answers)
    expected = json.loads(answers.read_text())
    for _ in range(TURNS):
        turn = {}
        for kind in PEERS:
            turn[kind] = _run(PIPELINE, kind, model, place, few, answers)["per_s"]
            off[kind] = max(off.get(kind, 0), _apart(json.loads(answers.read_text()), expected))
        for name in backends:
            turn[name] = _run(OURS, name, model, place, scratch, 2)
            found = _answers(scratch / "answers.parquet")
            off[name], agree[name] = max(off.get(name, 0), _apart(found, expected)), _agreement(found, expected)
        turns.append(turn)
    result = {"images": images, "model": model.name, "pipeline": {k: median(t[k] for t in turns) for k in PEERS}}
    best = [max(turn[kind] for kind in PEERS) for turn in turns]
    exact = [max(turn[kind] for kind in PEERS if kind.startswith("fp32")) for turn in turns]
    for name in backends:
        ours = [turn[name] for turn in turns]
        result[name] = {
            **{key: median(one[key] for one in ours) for key in ours[0] if ours[0][key] is not None},
            "to_parquet / alone": _ratios(one["to_parquet"] / one["alone"] for one in ours),
            "to_parquet / possible": _ratios(one["to_parquet"] / one["possible"] for one in ours),
            "to_parquet / best pipeline": _ratios(one["to_parquet"] / b for one, b in zip(ours, best, strict=True)),
            "to_parquet / fp32 pipeline": _ratios(one["to_parquet"] / b for one, b in zip(ours, exact, strict=True)),
        }
    result[f"probabilities from the pipeline's ({SAME})"] = {k: round(v, 6) for k, v in off.items()}
    result["same label as the pipeline's"] = {name: round(share, 4) for name, share in agree.items()}
    for name in backends:
        if BACKENDS[name].exact and off[name] > EXACT:
            sys.exit(f"{name}: its probabilities are {off[name]:.1e} from the pipeline's")
    if off.get("openvino-bf16", 0) > NEAR:
        result["note"] = f"bfloat16's probabilities are more than {NEAR} from fp32's"
    return result


def benchmark_memory(folder: Path | None, model: Path, scratch: Path) -> dict:
    """Peak private memory of `oct-hf predict --out` on 1,000 and on 100,000 files."""
    sources, found = bscans(folder), {}
    for count in (1_000, 100_000):
        place = spread(sources, scratch / f"files {count}", count)
        found[count] = round(_run(MEMORY, place, model, scratch / "memory.parquet"), 1)
        shutil.rmtree(place)
    return {"private_mb": {f"{count:,}": mb for count, mb in found.items()}, "ratio": found[100_000] / found[1_000]}


def spread(sources: list[bytes], folder: Path, count: int) -> Path:
    """A folder with `count` files; the same content is on the disk once."""
    folder.mkdir()
    for number in range(count):
        path, first = folder / f"{number:06d}.jpeg", number % len(sources)
        if number < len(sources):
            path.write_bytes(sources[number])
        else:
            os.link(folder / f"{first:06d}.jpeg", path)
    return folder


def _run(code: str, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def _answers(path: Path) -> dict[str, dict[str, float]]:
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
    return {
        row["file"]: {name.removeprefix("p_"): value for name, value in row.items() if name.startswith("p_")}
        for row in rows
    }


def _apart(found: dict, expected: dict) -> float:
    """The largest difference of a probability over the files that both answered."""
    both = expected.keys() & found.keys()
    return float(np.max([abs(found[file][label] - value) for file in both for label, value in expected[file].items()]))


def _agreement(found: dict, expected: dict) -> float:
    """The share of files with the same most probable label, of those that both answered."""
    both = expected.keys() & found.keys()
    return float(np.mean([max(found[f], key=found[f].get) == max(expected[f], key=expected[f].get) for f in both]))


def _ratios(ratios) -> dict:
    ratios = [round(ratio, 2) for ratio in ratios]
    return {"median": median(ratios), "ratios": ratios}
