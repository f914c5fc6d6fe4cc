"""Every loader of the ecosystem, by repository id, each in a process of its own, on ten real B-scans.

The same pixels must give the same probabilities; the same file may differ by what the libraries' resizers differ.
"""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from load_by_id import LOADERS

from oct_hf import OCTForImageClassification, Predictor
from oct_hf.images import read_image
from oct_hf.inference.export import write_onnx

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "node" / "load_by_id.mjs"
PIXELS = {name: 1e-6 for name in LOADERS} | {"onnxruntime": 1e-5, "transformers.js": 1e-5}
# transformers.js in Node resizes by Lanczos where all others take the antialiased bicubic of the repository.
FILES = {name: 2e-3 for name in LOADERS} | {"oct_hf": 1e-6, "transformers.js": 2e-2}


@pytest.fixture(scope="module")
def answers(site, finished_run, real_files, node, tmp_path_factory):
    """What each loader answered, the package's own answers, and the files of the repository."""
    folder = tmp_path_factory.mktemp("loaders")
    run = shutil.copytree(finished_run, folder / "run")
    _sharpen(run / "model")
    predictor = Predictor(run / "model")
    pixels = np.stack([predictor.preprocessing(read_image(file)) for file in real_files])
    np.save(folder / "pixels.npy", pixels)
    content = {"shape": pixels.shape, "values": pixels.ravel().tolist()}
    (folder / "pixels.json").write_text(json.dumps(content))
    expected = {
        "pixels": predictor.probabilities(pixels),
        "files": [list(answer.probabilities.values()) for answer in predictor.predict(real_files)],
    }
    assert np.ptp(expected["files"], axis=0).max() > 0.2, "answers that are all alike would agree whatever was loaded"
    address, environment = site.address, site.environment
    publish = [sys.executable, "-m", "oct_hf.cli", "publish", run, "--repo", "clinic/loaded"]
    subprocess.run(publish, env=environment, check=True, capture_output=True)
    commands = {
        name: [sys.executable, HERE / "load_by_id.py", name, "clinic/loaded", folder / "pixels.npy", *real_files]
        for name in LOADERS
    }
    commands["transformers.js"] = [node, SCRIPT, address, folder, "clinic/loaded", folder / "pixels.json", *real_files]

    def call(command) -> subprocess.CompletedProcess:
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        called = dict(zip(commands, pool.map(call, commands.values()), strict=True))
    written = {p.relative_to(run / "model").as_posix() for p in (run / "model").rglob("*.*")}
    return called, expected, written


def _sharpen(repository: Path) -> None:
    """Spreads the answers of a network that was hardly trained, so that a wrong weight or pixel shows in them."""
    model = OCTForImageClassification.from_pretrained(repository).eval()
    with torch.no_grad():
        model.timm_model.get_classifier().weight.mul_(300)
    model.save_pretrained(repository)
    write_onnx(model, repository / "onnx" / "model.onnx")


@pytest.mark.parametrize("loader", [*LOADERS, "transformers.js"])
def test_a_loader_gives_the_packages_answers_by_repository_id(answers, loader):
    called, expected, written = answers
    assert called[loader].returncode == 0, called[loader].stderr
    said = json.loads(called[loader].stdout.splitlines()[-1])
    if "pixels" in said:
        assert np.abs(np.subtract(said["pixels"], expected["pixels"])).max() <= PIXELS[loader]
    if "files" in said:
        assert np.abs(np.subtract(said["files"], expected["files"])).max() <= FILES[loader]
    if "class" in said:
        own = loader == "remote-code, code trusted"
        assert said["class"].startswith("transformers_modules." if own else "transformers.models.timm_wrapper")
    if loader == "snapshot":
        assert set(said["found"]) == written | {".gitattributes"} and said["pipeline_tag"] == "image-classification"
