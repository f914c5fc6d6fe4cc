"""README and docs/: every code block is run or says why not, and what they name exists."""

import itertools
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pytest
import typer
from PIL import Image

from oct_hf.cli import app
from oct_hf.data.phantom import draw
from oct_hf.evaluation.operating_points import at_prevalence
from oct_hf.inference.predictor import Predictor
from oct_hf.training.recipe_file import load_recipe
from tests.blocks import PAGES, TOP, blocks_of, run_page
from tests.data.volumes.write import bscans
from tests.data.volumes.write_binary import write_e2e

README = (TOP / "README.md").read_text(encoding="utf-8")
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
TUTORIALS = sorted((TOP / "docs" / "tutorials").glob("*.md"))
# Pages about a model that is there already: they run beside one.
BESIDE_A_MODEL = [TOP / name for name in ("README.md", "docs/devices.md", "docs/predict.md", "docs/without_package.md")]


@pytest.fixture
def beside_a_model(finished_run, tmp_path) -> Path:
    """A folder with a finished run, as `runs/demo` and `runs/clinic`, and with files to ask it about."""
    (tmp_path / "runs").mkdir()
    for name in ("demo", "clinic"):
        (tmp_path / "runs" / name).symlink_to(finished_run)
    for folder in ("exports", "scans", "new_scans"):
        (tmp_path / folder).mkdir()
    pictures = [Image.fromarray(draw("DME", 2, number, height=96, width=96).image) for number in range(3)]
    for name, picture in zip(("a.png", "b.png", "scans/c.png"), pictures, strict=True):
        picture.save(tmp_path / name)
    pictures[0].save(tmp_path / "new_scans" / "d.png")
    for name in ("scan.e2e", "exports/scan.e2e"):
        write_e2e(tmp_path / name, {"R": bscans(3)})
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    subprocess.run(["tar", "cf", "more.tar", "b.png"], cwd=tmp_path, check=True)
    encoded = [(tmp_path / "a.png").read_bytes()]
    pandas.DataFrame({"image": encoded}).to_parquet(tmp_path / "exported.parquet")
    return tmp_path


@pytest.mark.parametrize("page", BESIDE_A_MODEL, ids=lambda page: page.stem)
def test_a_page_about_a_model_runs_beside_one(page, beside_a_model):
    said = run_page(page, beside_a_model)
    tables = [path.read_bytes() for path in beside_a_model.glob("answers.*")]
    assert any(b"DME" in text for text in (said.encode(), *tables))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_an_empty_folder(page, tmp_path):
    run_page(page, tmp_path)


def test_every_block_is_run_or_says_why_not():
    assert len(TUTORIALS) == 7
    runs = {str(page.relative_to(TOP)) for page in (*TUTORIALS, *BESIDE_A_MODEL)}
    blocks = [block for page in PAGES for block in blocks_of(page)]
    fences = sum(len(re.findall(r"^```\w*[^\n]*$", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert 2 * len(blocks) == fences  # none is overlooked
    forgotten = [f"{block.page}:{block.line}" for block in blocks if block.runs and block.page not in runs]
    assert not forgotten, f"neither run nor marked <!-- not run: why -->: {', '.join(forgotten)}"


def test_the_lines_without_this_package_give_the_predictors_probabilities(finished_run, beside_a_model):
    page = TOP / "docs" / "without_package.md"
    code = next(block.code for block in blocks_of(page) if block.language == "python")
    code = f"import sys\nsys.modules['oct_hf'] = None\n{code}\nprint(*map(repr, map(float, probabilities[0])))"
    done = subprocess.run([sys.executable, "-c", code], cwd=beside_a_model, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = [float(word) for word in done.stdout.splitlines()[-1].split()]
    (ours,) = Predictor(finished_run / "model", backend="onnx").predict(
        [finished_run / "model" / "examples" / "DME.png"]
    )
    np.testing.assert_allclose(theirs, list(ours.probabilities.values()), rtol=0, atol=1e-6)
    assert len(code.strip().splitlines()) < 20


def commands() -> list[tuple[list[str], bool]]:
    """Every `oct-hf …` of README and docs/ as its words, and whether it stands in a block, so that it must be whole."""
    blocks = [block.code for page in PAGES for block in blocks_of(page) if block.language == "bash"]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", ALL, flags=re.DOTALL | re.MULTILINE))
    return [
        (words, code is blocks)
        for code in (blocks, spans)
        for line in re.findall(r"oct-hf [a-z][a-z-]* [^\n]+", "\n".join(code).replace("\\\n", " "))
        for words in [_words(line)]
    ]


def _words(line: str) -> list[str]:
    """The words of a command up to a comment or what the shell does with it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(itertools.takewhile(lambda word: not set(word) <= set("();<>|&"), lexer))


def test_every_command_parses():
    """Verbs, options and their values, run or not; of one that is only mentioned in a line, its verb and options."""
    program = typer.main.get_command(app)
    assert len(commands()) >= 60
    for words, whole in commands():
        command, rest = program, words[1:]
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, " ".join(words)
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for given in command.params for name in given.opts}
        unknown = {word for word in rest if word.startswith("--")} - known - {"--help"}
        assert not unknown, f"{' '.join(words)}: {unknown}"
        if whole:
            try:
                command.make_context(words[1], list(rest))
            except Exception as error:
                pytest.fail(f"{' '.join(words)}: {error}")


def test_every_fine_tuning_names_a_recipe_and_keys_that_exist():
    fine_tunings = [words[2:] for words, _ in commands() if words[1] == "finetune" and "--rerun" not in words]
    assert len(fine_tunings) >= 20
    written = {block.file for page in PAGES for block in blocks_of(page)}
    for recipe, *rest in fine_tunings:
        own = recipe in written or recipe.startswith("runs/")  # written by a block, a search or a run
        overrides = [word for word in rest if re.match(r"[\w.]+=", word)]
        if recipe != "NAME" and not own:
            load_recipe(recipe, overrides)
    for override in re.findall(r"`'?((?:data|model|split|pretrain|teacher)\.[\w.]+=[^`']+)'?`", ALL):
        load_recipe("efficientnetv2_b0_offline" if override.startswith("teacher.") else "folder", [override])


def test_every_link_leads_to_a_file():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if not re.match(r"\w+:", link):
                assert (page.parent / link).exists(), f"{page.relative_to(TOP)}: {link}"


def test_every_published_system_has_a_row_of_results():
    systems = re.findall(r"^\| `(\w+)` \|", (TOP / "docs" / "systems.md").read_text(encoding="utf-8"), re.MULTILINE)
    results = (TOP / "RESULTS.md").read_text(encoding="utf-8")
    # Without a network, hybrid_aco is the one on networks that pip installs.
    missing = [name for name in systems if name != "hybrid_aco" and f"| {name} |" not in results]
    assert len(systems) >= 15 and not missing


def test_the_clinicians_table_is_right():
    page = (TOP / "docs" / "clinicians.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)[^|]*\| (\d+) \| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for have, hit, false, ppv, npv in rows:
        share = int(have) / 1000
        assert abs(int(hit) - 950 * share) <= 0.5 and abs(int(false) - 50 * (1 - share)) <= 0.5
        values = at_prevalence(0.95, 0.95, share)
        assert abs(float(ppv) / 100 - values["ppv"]) <= 0.006 and abs(float(npv) / 100 - values["npv"]) <= 0.006
