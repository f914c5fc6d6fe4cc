"""Every loader of the ecosystem, by repository id, each in a process of its own, on ten real B-scans.

The same pixels must give the same probabilities; the same file may differ by what the libraries' resizers differ.
"""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from load_by_id import LOADERS

from oct_hf import Predictor
from oct_hf.images import read_image
from tests.sharpened import sharpen

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "node" / "load_by_id.mjs"
PIXELS = {name: 1e-6 for name in LOADERS} | {"oct_hf": 1e-5, "onnxruntime": 1e-5, "transformers.js": 1e-5}
# transformers.js in Node resizes by Lanczos where all others take the antialiased bicubic of the repository.
FILES = {name: 2e-3 for name in LOADERS} | {"oct_hf": 1e-5, "transformers.js": 2e-2}


@dataclass(frozen=True)
class Published:
    """A repository on the loopback Hub: the package's own answers, its files, and the arguments of every loader."""

    expected: dict
    files: set
    arguments: dict

    def ask(self, loaders, environment: dict, python=sys.executable) -> dict[str, subprocess.CompletedProcess]:
        """Runs loaders, two at a time."""

        def call(name: str) -> subprocess.CompletedProcess:
            command = [*([] if name == "transformers.js" else [python]), *self.arguments[name]]
            return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

        with ThreadPoolExecutor(2) as pool:
            return dict(zip(loaders, pool.map(call, loaders), strict=True))

    def check(self, loader: str, called: subprocess.CompletedProcess) -> None:
        """Its answers are the package's."""
        assert called.returncode == 0, called.stderr
        said = json.loads(called.stdout.splitlines()[-1])
        if "pixels" in said:
            assert np.abs(np.subtract(said["pixels"], self.expected["pixels"])).max() <= PIXELS[loader]
        if "files" in said:
            assert np.abs(np.subtract(said["files"], self.expected["files"])).max() <= FILES[loader]
        if "class" in said:
            own = loader == "remote-code, code trusted"
            assert said["class"].startswith("transformers_modules." if own else "transformers.models.timm_wrapper")
        if loader == "snapshot":
            assert set(said["found"]) == self.files | {".gitattributes"}
            assert said["pipeline_tag"] == "image-classification"
        else:
            assert said.keys() & {"pixels", "files"}


@pytest.fixture(scope="module")
def published(site, finished_run, real_files, tmp_path_factory) -> Published:
    """`clinic/loaded` on the loopback Hub, with a network whose answers differ from image to image."""
    folder = tmp_path_factory.mktemp("loaders")
    run = shutil.copytree(finished_run, folder / "run")
    sharpen(run / "model")
    predictor = Predictor(run / "model", backend="torch")
    pixels = np.stack([predictor.preprocessing(read_image(file)) for file in real_files])
    np.save(folder / "pixels.npy", pixels)
    content = {"shape": pixels.shape, "values": pixels.ravel().tolist()}
    (folder / "pixels.json").write_text(json.dumps(content))
    expected = {
        "pixels": predictor.probabilities(pixels),
        "files": [list(answer.probabilities.values()) for answer in predictor.predict(real_files)],
    }
    assert np.ptp(expected["files"], axis=0).max() > 0.2, "answers that are all alike would agree whatever was loaded"
    publish = [sys.executable, "-m", "oct_hf.cli", "publish", run, "--repo", "clinic/loaded"]
    subprocess.run(publish, env=site.environment, check=True, capture_output=True)
    script, npy = HERE / "load_by_id.py", folder / "pixels.npy"
    arguments = {name: [script, name, "clinic/loaded", npy, *real_files] for name in LOADERS}
    arguments["transformers.js"] = [
        *("node", HERE.parent / "node" / "load_by_id.mjs", site.address, folder),
        *("clinic/loaded", folder / "pixels.json", *real_files),
    ]
    written = {p.relative_to(run / "model").as_posix() for p in (run / "model").rglob("*.*")}
    return Published(expected, written, arguments)


@pytest.fixture(scope="module")
def called(published, site):
    """What each loader of Python answered in a process of its own."""
    return published.ask(LOADERS, site.environment)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_loader_gives_the_packages_answers_by_repository_id(published, called, loader):
    published.check(loader, called[loader])


def test_transformers_js_gives_the_packages_answers_by_repository_id(published, site, node):
    published.check("transformers.js", published.ask(["transformers.js"], site.environment)["transformers.js"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.51.3", "4.57.1"])
def test_older_transformers_give_the_packages_answers(published, site, tmp_path, version):
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"transformers=={version}", "pillow", "numpy"], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    # torch and timm, gigabytes of them, come from here; what the new environment has itself goes first.
    here = Path(torch.__file__).parents[1]
    (Path(own.stdout.decode().strip()) / "torch_and_timm.pth").write_text(f"{here}\n")
    asked = subprocess.run([python, "-c", "import transformers as t; print(t.__version__)"], capture_output=True)
    assert asked.stdout.decode().strip() == version
    loaders = [name for name in LOADERS if name not in ("oct_hf", "onnxruntime", "snapshot")]
    for loader, answer in published.ask(loaders, site.environment, python).items():
        published.check(loader, answer)
