"""What is promised to stay: public names, their page, types, and a workflow that speaks the command line as it is."""

import re
from pathlib import Path

import pytest
import typer
import yaml

import oct_hf
from oct_hf.cli import app

TOP = Path(__file__).parents[1]


def parse(command, words: list[str], parent=None, name: str = "oct-hf"):
    """What the real parser makes of words, down to the verb; nothing is run.

    Raises:
        typer.TyperException: it refuses them.
    """
    context = command.make_context(name, list(words), parent=parent)
    if not hasattr(command, "commands"):
        return context
    rest = [*context._protected_args, *context.args]
    found, verb, more = command.resolve_command(context, rest)
    return parse(verb, more, context, found)


def test_the_page_of_public_names_lists_each_of_them_once():
    page = (TOP / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: oct_hf\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(oct_hf.__all__)


def test_every_public_name_says_what_it_is():
    assert all(getattr(oct_hf, name).__doc__ for name in oct_hf.__all__)


def test_a_type_checker_finds_the_types():
    assert (Path(oct_hf.__file__).parent / "py.typed").is_file()


def test_the_workflow_runs_commands_that_exist_on_three_systems():
    text = (TOP / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    systems = {jobs["linux"]["runs-on"], *jobs["user"]["strategy"]["matrix"]["os"]}
    assert {system.split("-")[0] for system in systems} == {"ubuntu", "macos", "windows"}
    assert "secrets." not in text
    commands = re.findall(r"^\s+oct-hf ([^|\n]+)", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        parse(typer.main.get_command(app), command.split())
    with pytest.raises(typer.TyperException):
        parse(typer.main.get_command(app), ["predict", "--modle", "x"])
