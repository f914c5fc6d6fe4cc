"""The package as its users install it: a wheel in an environment of its own."""

import csv
import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from oct_hf.packaged import packaged

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel itself; its dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run(install, check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    # Paths named in a .pth of another environment are not followed, so the checkout itself stays out.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_carries_recipes_and_card_and_no_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    recipes = {f"oct_hf/recipes/{path.name}" for path in packaged("recipes").glob("*.yaml")}
    assert recipes and recipes <= set(names) and "oct_hf/model_card/model.md.jinja" in names
    others = [name for name in names if "dist-info" not in name and Path(name).suffix not in (".py", ".yaml", ".jinja")]
    page = [f"oct_hf/hub/page/{p.name}" for p in (ROOT / "oct_hf/hub/page").iterdir() if p.suffix not in (".py", "")]
    app = [f"oct_hf/inference/app/page{suffix}" for suffix in (".css", ".js")]
    # The gate's numbers, the mark for type checkers, and the browser's part of both pages.
    assert sorted(others) == sorted(["oct_hf/data/quality.json", "oct_hf/py.typed", *app, *page])
    assert len(page) == 16
    assert wheel.stat().st_size < 1_000_000


def test_finetune_card_and_predict_work_from_the_wheel_in_an_empty_folder(environment, tmp_path):
    def call(*arguments) -> str:
        result = subprocess.run([*map(str, arguments)], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = call(environment / "python", "-c", "import oct_hf; print(oct_hf.__file__)")
    assert str(environment.parent) in where
    settings = ["base=test_efficientnet", "image_size=64", "epochs=1", "data.patients=5", "scans=2", "workers=0"]
    call(environment / "oct-hf", "finetune", "demo", *settings, "data.height=96", "data.width=96", "batch_size=8")
    card = (tmp_path / "runs" / "demo" / "model" / "README.md").read_text()
    assert "model-index" in card and "confusion_matrix.png" in card
    examples = tmp_path / "runs" / "demo" / "model" / "examples"
    call(environment / "oct-hf", "predict", examples, "--model", "runs/demo", "--out", "answers.csv")
    assert len(list(csv.DictReader((tmp_path / "answers.csv").read_text().splitlines()))) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers.csv", "runs"]


def test_the_scripts_do_what_the_commands_do(tmp_path):
    settings = ["base=test_efficientnet", "image_size=64", "epochs=1", "data.patients=5", "scans=2", "workers=0"]
    settings += ["data.height=96", "data.width=96", "batch_size=8", "--out", str(tmp_path / "run")]
    for script, arguments in (
        ("finetune", ["demo", *settings]),
        ("evaluate_model", [str(tmp_path / "run")]),
        ("predict", [str(tmp_path / "run/model/examples"), "--model", str(tmp_path / "run")]),
    ):
        command = [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "DRUSEN" in result.stdout


def test_a_stranger_loads_the_repository_with_transformers_alone(finished_run):
    command = [sys.executable, ROOT / "scripts" / "load_anywhere.py", finished_run / "model"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.count("  ->  ") == 3


@pytest.mark.slow
def test_the_builder_is_a_loading_script_for_datasets_3(wheel, samples, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = ["datasets==3.6.0", "pillow", "opencv-python-headless", "scipy"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    code = """
import json, sys
import datasets
import oct_hf.data.oct as script
data, cache = sys.argv[1:]
load = lambda *a, **k: datasets.load_dataset(script.__file__, *a, cache_dir=cache, trust_remote_code=True, **k)
kermany = load("oct2017", data_dir=data + "/oct2017_sample")
streamed = load("oct2017", data_dir=data + "/oct2017_sample", split="test", streaming=True)
neh = load("folder", data_dir=data + "/neh_sample", csv="groups.csv", columns={"patient": "eye"})
phantoms = load("phantom", patients=1, scans=1)
print(json.dumps({
    "version": datasets.__version__,
    "rows": [len(kermany["train"]), len(kermany["test"]), len(neh["train"]), len(phantoms["train"])],
    "labels": kermany["train"].features["label"].names,
    "size": kermany["train"][0]["image"].size,
    "same": [row["content_hash"] for row in streamed] == kermany["test"]["content_hash"],
}))
"""
    command = [python, "-c", code, samples, tmp_path / "cache"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert said["version"] == "3.6.0" and said["rows"] == [58, 22, 540, 4] and said["same"]
    assert said["labels"] == ["CNV", "DME", "DRUSEN", "NORMAL"] and said["size"][1] == 496
