"""A page that runs a published model in the browser, as a static Space: the B-scans stay on the machine that opens it.

The page's own files lie beside this one. It decodes, resizes and decides as the package does, so that the same file
gets the same probabilities; what is fitted or measured comes from the model's repository, as `model.json`.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from oct_hf import __version__
from oct_hf.data import quality
from oct_hf.errors import ModelError, OCTError
from oct_hf.hub.card import model_licence
from oct_hf.hub.kinds import kind_of
from oct_hf.hub.page import runtime
from oct_hf.inference.description import Description, load_description
from oct_hf.inference.fast_files import ONNX_FILE, check_ends
from oct_hf.inference.gate import Gate
from oct_hf.inference.recorded import recorded_gate, recorded_run, views_of
from oct_hf.labels import DISEASE_BY_SIGNS, describe
from oct_hf.model.folder import model_folder
from oct_hf.whole import file_sha256, whole_folder

FILES = ("index.html", "page.css", "icon.svg", "page.js", "work.js", "answer.js", "decode.js", "inflated.js")
FILES += ("likeness.js", "pillow.js", "png.js", "refused.js", "scaled.js", "tiff.js")
WORKER = "sw.js"
MODEL, DESCRIPTION = "model.onnx", "model.json"
PHANTOMS = "It learned from drawn phantoms: its answers to real B-scans mean nothing."
HEADLINE = (("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC"), ("ece", "calibration error"))


def write_page(model: str | Path, out: str | Path, given_runtime: str | Path | None = None) -> Path:
    """Writes the folder of a static Space, which any web server can serve as well.

    Args:
        model: a run, a model folder or a Hub id.
        out: the folder; one that such a page was written to is replaced as a whole.
        given_runtime: npm's archive of onnxruntime-web or a folder with its files; fetched by npm where not given.

    Returns:
        the folder.

    Raises:
        ModelError: the model can't be read, or has no `onnx/model.onnx`.
        OCTError: `out` holds something else or can't be written, or the runtime can't be had.
    """
    out = Path(out)
    if out.exists() and not (out / DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OCTError(f"{out} holds something else than such a page; choose another folder with --out")
    if out.resolve() == Path.cwd():
        raise OCTError(f"{out} is the folder that you are in, and would be replaced; name one inside it with --out")
    local = model_folder(model)
    described = load_description(local if local.is_dir() else model)
    weights = described.file(ONNX_FILE)
    if weights is None:
        raise ModelError(
            f"{model}: no {ONNX_FILE}, which the page would run; a run writes it where the extra onnx is installed"
        )
    check_ends(weights)
    if described.preprocessing.before_crop is not None:
        raise ModelError(f"{model}: sees the centre of a picture alone, which the page doesn't cut out")
    repo = None if local.is_dir() else str(model)
    try:
        with whole_folder(out) as folder:
            _write(folder, described, weights, repo, Path(given_runtime) if given_runtime else None)
    except OSError as error:
        raise OCTError(f"{out} can't be written ({error.strerror or error})") from None
    return out


def _write(folder: Path, described: Description, weights: Path, repo: str | None, given_runtime: Path | None) -> None:
    here, run = Path(__file__).parent, _run(described)
    for name in FILES:
        shutil.copyfile(here / name, folder / name)
    runtime.copy_runtime(given_runtime, folder / "runtime")
    shutil.copyfile(here / "onnxruntime-web.txt", folder / "runtime" / "LICENSE.txt")
    shutil.copyfile(weights, folder / MODEL)
    examples = _examples(described, run, folder)
    facts = _description(described, run, repo, folder, examples)
    (folder / DESCRIPTION).write_text(json.dumps(facts, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    (folder / WORKER).write_text(_keeping(folder), encoding="utf-8")
    (folder / "README.md").write_text(_readme(facts["name"], run, repo), encoding="utf-8")


def _run(described: Description) -> dict | None:
    """The content of the repository's run.json; None of a model that this package didn't train."""
    run = recorded_run(described.name)
    return run if run.get("labels") == list(described.labels) else None


def _examples(described: Description, run: dict | None, folder: Path) -> list[dict[str, Any]]:
    """The repository's example pictures and their published answers, by which the page checks itself."""
    found = []
    for name, answer in (run or {}).get("examples", {}).items():
        if (source := described.file(name)) is not None and Path(name).parent.as_posix() == "examples":
            (folder / "examples").mkdir(exist_ok=True)
            shutil.copyfile(source, folder / name)
            found.append({"file": name, "probabilities": [answer[label] for label in described.labels]})
    return found


def _description(described: Description, run: dict | None, repo: str | None, folder: Path, examples: list) -> dict:
    pixels, gate = described.preprocessing, recorded_gate(described.name, described.labels)
    name = run["name"] if run else Path(described.name).resolve().name if repo is None else repo
    return {
        "name": name,
        "labels": [{"name": label, "means": describe(label)} for label in described.labels],
        "several": described.several,
        "input": {key: getattr(pixels, key) for key in ("height", "width", "interpolation", "mean", "std")},
        "gate": gate.to_dict() if gate else None,
        "likeness": _likeness(gate),
        "diseases": DISEASE_BY_SIGNS,
        "healthy": "NORMAL",
        "points": _points(run),
        "facts": _facts(run, repo, folder),
        "limits": _limits(gate, described),
        "warning": PHANTOMS if run and run["data"]["name"] == "phantom" else "",
        "examples": examples,
        "file": {
            "name": MODEL,
            "bytes": (folder / MODEL).stat().st_size,
            "sha256": file_sha256(folder / MODEL),
        },
        "runtime": {
            key: f"runtime/{name}"
            for key, name in (("script", runtime.SCRIPT), ("glue", runtime.GLUE), ("wasm", runtime.WASM))
        },
        "sizes": {
            name: (folder / name).stat().st_size
            for name in (f"runtime/{runtime.WASM}", *(example["file"] for example in examples))
        },
    }


def _likeness(gate: Gate | None) -> dict | None:
    """The fitted numbers of the check for what is no B-scan, where the model asks for it."""
    if gate is None or gate.likeness is None:
        return None
    fitted = quality.numbers()["gate"]
    return {key: fitted[key].tolist() for key in ("mean", "scale", "weights", "intercept")}


def _points(run: dict | None) -> list[dict]:
    """The operating points of a model of one label, with what each gives on the test side."""
    if not run or "signs" in run:
        return []
    return [
        {
            "name": question,
            "target": f"{target} on validation",
            "labels": _positive(run, question),
            "threshold": point["threshold"],
            "sensitivity": point["test"]["sensitivity"],
            "specificity": point["test"]["specificity"],
            "cases": sum(point["test"][key] for key in ("tp", "fp", "tn", "fn")),
        }
        for question, target, point in kind_of(run).card_facts(run).get("points", [])
    ]


def _positive(run: dict, question: str) -> list[str]:
    return views_of(run["operating_points"])[question]["labels"]


def _facts(run: dict | None, repo: str | None, folder: Path) -> list[tuple[str, str]]:
    """What the page tells of the model, as name and text."""
    facts = [("Repository", repo)] if repo else []
    if run:
        facts += [("Network", run["model"]["architecture"]), ("Trained on", run["data"]["title"])]
        facts += [("Result", _result(run)), ("Licence", model_licence(run) or "not stated")]
        facts += [("Trained with", f"oct-hf {run['package']}")]
    facts.append(("File", f"{ONNX_FILE}, SHA-256 {file_sha256(folder / MODEL)[:16]}…"))
    return [*facts, ("Page", f"oct-hf {__version__}, {runtime.PACKAGE} {runtime.VERSION}")]


def _result(run: dict) -> str:
    """The test side in a sentence."""
    cases, patients = (run["split"]["sides"]["test"][key] for key in ("images", "groups"))
    seen = f"on {cases:,} B-scans of {patients:,} {run['data']['grouped_by']}s that it never saw"
    if "signs" in run:
        return f"{seen}: {kind_of(run).headline(run)}"
    test, spans = run["results"]["test"], run["intervals"]["metrics"]
    parts = [f"{name} {test[key]:.3f}{_span(spans.get(key))}" for key, name in HEADLINE if test[key] is not None]
    return f"{seen}: {', '.join(parts)}"


def _span(interval: dict | None) -> str:
    if not interval or "low" not in interval:
        return ""
    return f" (95 % interval {interval['low']:.3f} to {interval['high']:.3f})"


def _limits(gate: Gate | None, described: Description) -> list[str]:
    limits = []
    if gate is None or gate.likeness is None:
        limits.append("Whether a picture is an OCT B-scan at all: this model names a label for anything.")
    if not described.several and (gate is None or gate.conformal is None):
        limits.append("When to be unsure: this model's run recorded no rule for it.")
    elif gate and gate.conformal and gate.conformal.get("note"):
        limits.append(f"When to be unsure, reliably: {gate.conformal['note']}.")
    return [
        *limits,
        "Whether a B-scan is good enough to be judged.",
        "Which B-scans are of one eye: each is answered on its own.",
        "A device's own files and volumes: oct-hf predict reads them.",
        "Where in the B-scan the reason lies: oct-hf explain draws that.",
    ]


def _keeping(folder: Path) -> str:
    """The service worker, with the list of files that it keeps; another file anywhere makes it another version."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    source = Path(__file__).with_name(WORKER).read_text(encoding="utf-8")
    hashes = [[name, file_sha256(folder / name)] for name in names]
    version = hashlib.sha256(json.dumps([hashes, source]).encode()).hexdigest()[:16]
    files = json.dumps(["", *names], indent=1)  # without a name it is index.html
    return f"const FILES = {files};\nconst VERSION = {json.dumps(version)};\n\n{source}"


def _readme(name: str, run: dict | None, repo: str | None) -> str:
    metadata = {
        "title": name,
        "emoji": "👁️",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "short_description": "Retinal OCT in your browser: no image is sent",
        "tags": ["oct", "ophthalmology", "retina", "oct-hf"],
    }
    if repo:
        metadata["models"] = [repo]
    if run and (licence := model_licence(run)):
        metadata["license"] = licence
    head = yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)
    parts = (
        f"# {name}: a page that keeps images at home",
        f"It runs {repo or name} in the browser: a B-scan that is opened here never leaves the machine. It works "
        "without a network once it was loaded, and gives the probabilities of `oct-hf predict`.",
        "**For research, not for diagnosis.**",
        "Any web server can serve this folder. On your own machine: `python -m http.server --bind 127.0.0.1` in it, "
        "then open http://localhost:8000.",
    )
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"
