"""The site of docs/ is whole, needs no network, and has every option and every public name; the notebook runs."""

import inspect
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from pydantic import TypeAdapter

import oct_hf
from oct_hf.cli import app
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import whole_key
from tests.blocks import TOP, own_programs

sys.path.insert(0, str(TOP / "scripts"))
pytestmark = pytest.mark.skipif(
    find_spec("mkdocs") is None and not os.environ.get("CI"), reason="the site is built by the extra docs"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; strict, so that a link that leads nowhere fails here (`--quiet` would pass over it)."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_site_loads_nothing_from_the_net(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)", text
        )
        assert not loaded, f"{page.name}: {loaded}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def all_keys() -> set[str]:
    """Every key of a recipe, by the schema of the dataclass that checks recipes."""
    schema = TypeAdapter(Recipe).json_schema()
    found = set()
    for key, value in schema["properties"].items():
        section = re.search(r"#/\$defs/(\w+Recipe)", str(value))
        found |= {f"{key}.{inner}" for inner in schema["$defs"][section[1]]["properties"]} if section else {key}
    return found


def test_every_option_of_a_recipe_says_what_it_does(site):
    from reference import recipe_options

    options = [option for _, options in recipe_options().values() for option in options]
    assert {option.key for option in options} == all_keys()
    for option in options:
        assert whole_key(option.key) == option.key
        assert option.says, f"{option.key} has no comment in oct_hf/training/recipe.py"
    page = (site / "options.html").read_text(encoding="utf-8")
    assert all(f"<code>{option.key}</code>" in page for option in options)


def test_every_command_and_option_is_on_the_page_of_commands(site):
    page = (site / "commands.html").read_text(encoding="utf-8")

    def look(command, name: str) -> int:
        if hasattr(command, "commands"):
            return sum(look(inner, f"{name} {key}") for key, inner in command.commands.items())
        part = page.split(f">{name}<")[-1].split("<h2")[0]
        options = [
            word for given in command.params for word in given.opts if word.startswith("--") and word != "--help"
        ]
        assert part and all(f"<code>{word}</code>" in part for word in options), name
        return 1

    assert look(typer.main.get_command(app), "oct-hf") >= 18


def test_every_public_name_has_its_documentation(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in oct_hf.__all__:
        first = (inspect.getdoc(getattr(oct_hf, name)) or "").splitlines()[0]
        assert f'id="oct_hf.{name}"' in page, name
        words = max(re.split(r"[`'\"&<>]", first), key=len)[:30].strip()
        assert words and words in page, f"{name}: {words}"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    notebook = nbformat.read(TOP / "docs" / "colab.ipynb", as_version=4)
    monkeypatch.setenv("PATH", f"{own_programs(tmp_path)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(TOP))
    monkeypatch.setenv("HOME", str(tmp_path))
    client = nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert (tmp_path / "runs" / "colab" / "report.html").exists()


def test_the_notebook_is_stored_without_outputs():
    import nbformat

    notebook = nbformat.read(TOP / "docs" / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 6 and not any(cell.outputs or cell.execution_count for cell in code)
