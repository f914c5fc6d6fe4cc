"""What several tests share: real B-scans where the machine has them, and one small finished run."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest_plugins = ["promises"]
pytest.register_assert_rewrite("killing")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network; a forgotten one then fails at once


def pytest_xdist_auto_num_workers(config) -> int:
    """`-n auto` takes every core that the system counts, as far as memory for torch in each worker lasts."""
    return min(os.cpu_count() or 1, 8)


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory):
    """Prepared data, the pseudonym key and what is remembered of this machine stay out of the user's home."""
    import datasets

    from oct_hf.data import splits

    home = tmp_path_factory.mktemp("home")
    datasets.config.HF_DATASETS_CACHE = home / "datasets"
    os.environ["OCT_HF_CACHE"] = str(home / "cache")  # processes that tests start read it too
    splits.KEY_FILE = home / "patient.key"


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder with real B-scans that the environment variable OCT_SAMPLES names."""
    folder = os.environ.get("OCT_SAMPLES")
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    if os.environ.get("CI"):
        pytest.fail("OCT_SAMPLES must name the real B-scans in CI")
    pytest.skip("no real B-scans here: OCT_SAMPLES names their folder")


@pytest.fixture(scope="session")
def real_files(samples) -> list[Path]:
    """Ten real B-scans of several sizes, some with the white wedges of an export."""
    return sorted((samples / "oct2017_sample/test").rglob("*.jpeg"))[::2][:10]


@pytest.fixture(scope="session")
def node() -> str:
    """The command `node`, with the packages of tests/node beside it (`make test` installs them)."""
    command = shutil.which("node")
    if command and (Path(__file__).parent / "node" / "node_modules" / "@huggingface").is_dir():
        return command
    if os.environ.get("CI"):
        pytest.fail("Node and the packages of tests/node must be there in CI")
    pytest.skip("no Node here, or tests/node/node_modules is missing: make test installs it")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of Debian's Chromium, for pages in a real browser."""
    command = shutil.which("chromium")
    if not command:
        if os.environ.get("CI"):
            pytest.fail("Chromium must be there in CI")
        pytest.skip("no chromium here")
    return command


@pytest.fixture(scope="module")
def launched(chromium):
    """Starts a browser without a window, with options of its own, driven by Playwright; its pages reach no network.

    It ends with its module: worker processes that later tests fork would hold its pipes, and it would never end.
    """
    from playwright.sync_api import sync_playwright

    common = ["--disable-quic", "--no-first-run", "--disable-background-networking"]
    common += ["--disable-component-update", "--disable-sync"]
    with ExitStack() as browsers:
        playwright = browsers.enter_context(sync_playwright())

        def launch(*options: str):
            started = playwright.chromium.launch(
                executable_path=chromium, args=[*options, *common], chromium_sandbox=os.geteuid() != 0
            )
            browsers.callback(started.close)
            return started

        yield launch


@pytest.fixture(scope="module")
def browser(launched):
    """A browser whose pages compute on the processor."""
    return launched("--disable-gpu")


@pytest.fixture(scope="module")
def browser_with_webgpu(launched):
    """A browser with WebGPU, on a processor that plays a graphics card (SwiftShader)."""
    return launched("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


@pytest.fixture(scope="session")
def axe(node) -> str:
    """axe-core's script, which finds what hinders people with disabilities on a page."""
    return (Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line in this process, whose environment stays; gives exit code, stdout and stderr."""
    from oct_hf import cli

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oct-hf", *map(str, arguments)])
        code, environment = 0, dict(os.environ)
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            os.environ.clear()
            os.environ.update(environment)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def own_disk(tmp_path):
    """A file system of its own, of 50 MB, and what mounts it anew with other options."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", place]).returncode:
        pytest.skip("this machine doesn't let tests mount a file system")
    yield place, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def interrupt_when_saved(monkeypatch):
    """Arms one Ctrl-C for when a training has written its first checkpoint below a folder.

    It comes from within the training: one sent by a thread that watches may come after its end, and ends the tests.
    """
    from oct_hf.training.trainer import OCTTrainer

    save, folders = OCTTrainer._save_checkpoint, []

    def save_and_interrupt(trainer, *args, **kwargs):
        save(trainer, *args, **kwargs)
        place = Path(trainer.args.output_dir).resolve()
        if folders and place.is_relative_to(folders[0]):
            folders.clear()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(OCTTrainer, "_save_checkpoint", save_and_interrupt)
    return lambda folder: folders.append(Path(folder).resolve())


TINY = {
    "name": "tiny",
    "data": {"name": "phantom", "patients": 6, "scans": 2, "height": 96, "width": 96, "public": True},
    "split": {"validation": 0.2, "test": 0.3},
    "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64, "dropout": 0.1},
    "augment": "light",
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "ema": 0.8, "freeze_epochs": 1, "workers": 0},
    "evaluation": {"explain": 2},
}


@pytest.fixture(scope="session")
def tiny():
    """A recipe that trains in seconds."""
    from oct_hf.training.recipe_file import make_recipe

    return make_recipe(TINY)


@pytest.fixture(scope="session")
def finished_run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of the tiny recipe."""
    from oct_hf import finetune

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    finetune(tiny, folder)
    return folder


@pytest.fixture(scope="session")
def signs_recipe(tiny):
    """A recipe that learns signs in seconds: its validation side is large enough for temperatures, and its answers
    differ from picture to picture, so that another weight or function shows in them."""
    data = dataclasses.replace(tiny.data, signs=True, patients=10, scans=3)
    train = dataclasses.replace(tiny.train, loss="asymmetric", epochs=6, learning_rate=0.01, freeze_epochs=0)
    evaluation = dataclasses.replace(tiny.evaluation, explain=0)
    return dataclasses.replace(tiny, name="signs", data=data, train=train, evaluation=evaluation)


@pytest.fixture(scope="session")
def finished_signs_run(signs_recipe, tmp_path_factory) -> Path:
    """The folder of a finished run that learned signs."""
    from oct_hf import finetune

    folder = tmp_path_factory.mktemp("signs") / "run"
    finetune(signs_recipe, folder)
    return folder


@pytest.fixture
def clinic(tmp_path) -> Path:
    """A folder of phantoms as a clinic may have it: CLASS/PATIENT/image.png, two classes, six patients each."""
    from oct_hf.data.phantom import draw

    folder = tmp_path / "clinic"
    for label in ("DME", "NORMAL"):
        for patient in range(6):
            place = folder / label / f"{label[0]}{patient}"
            place.mkdir(parents=True)
            for scan in range(2):
                image = draw(label, 1, patient + 100 * (label == "DME"), scan, 96, 96).image
                Image.fromarray(image).save(place / f"{scan}.png")
    return folder


@pytest.fixture
def bscan() -> np.ndarray:
    """A phantom B-scan, uint8 `(248, 256)`."""
    from oct_hf.data.phantom import draw

    return draw("DRUSEN", 3, height=248, width=256).image
