"""The command line as a person, a shell, a pipe and another program meet it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from oct_hf.cli import app
from oct_hf.training.recipe_file import load_recipe, recipe_names
from tests.test_stable import parse

PROGRAM = typer.main.get_command(app)


def verbs(command=PROGRAM, path: tuple[str, ...] = ()) -> dict[str, object]:
    """Every verb by its words, those of groups too."""
    found = {}
    for name, one in command.commands.items():
        found |= verbs(one, (*path, name)) if hasattr(one, "commands") else {" ".join((*path, name)): one}
    return found


VERBS = verbs()
ENDLESS = ("app", "serve", "hub")  # they print no result


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_an_example_that_the_parser_takes(verb):
    text = " ".join(VERBS[verb].callback.__doc__.split("Example", 1)[1].split())
    examples = [shlex.split(one) for one in re.findall(r"oct-hf ((?:(?!oct-hf|&&).)+)", text)]
    assert examples and examples[0][: len(verb.split())] == verb.split()
    for words in examples:
        parameters = parse(PROGRAM, words).params
        overrides = [word for word in words if re.match(r"[\w.]+=", word)]
        name = parameters.get("recipe") or parameters.get("name") or parameters.get("source") or "folder"
        load_recipe(name if name in recipe_names() else "folder", overrides)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - set(ENDLESS)))
def test_every_verb_with_a_result_has_json(verb):
    assert "--json" in [name for parameter in VERBS[verb].params for name in parameter.opts]


def test_the_first_help_tells_the_exit_codes(run):
    text = " ".join(run("--help")[1].split())
    assert "Exit codes: 0 done; 1 the answer is no" in text and "2 what was given is wrong" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "list"],
        ["info"],
        ["evaluate", "RUN"],
        ["evaluate", "RUN", "--prevalence", "0.1"],
        ["predict", "EXAMPLES", "--model", "RUN"],
        ["predict", "EXAMPLES", "--model", "RUN", "--out", "answers.csv"],
        ["explain", "EXAMPLES", "--model", "RUN", "--method", "gradcam", "--out", "heat"],
        ["export", "RUN", "--to", "onnx", "--out", "fast"],
        ["verify", "RUN"],
        ["publish", "RUN", "--repo", "you/model", "--dry-run"],
        ["finetune", "RECIPE", "--out", "RUN"],
        ["publish-data", "RECIPE", "--repo", "you/data", "--dry-run"],
        ["data", "prepare", "RECIPE"],
        ["data", "prepare", "RECIPE", "--out", "shards"],
        ["data", "check", "RECIPE"],
        ["data", "show", "RECIPE", "--out", "page.html"],
    ],
    ids=lambda words: " ".join(words),
)
def test_json_is_all_that_stands_on_stdout(run, finished_run, tiny, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    names = {"RUN": finished_run, "EXAMPLES": finished_run / "model" / "examples", "RECIPE": "tiny.yaml"}
    with open(tmp_path / "descriptor", "w+b") as written:
        kept = os.dup(1)
        os.dup2(written.fileno(), 1)
        try:
            code, out, said = run(*(names.get(word, word) for word in arguments), "--json")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        assert code in (0, 1), said
        assert json.loads(out)  # what a library printed beside it would break it
        assert written.read() == b""  # nor did one write to the descriptor itself


def test_rows_of_predict_are_those_of_its_table(run, finished_run, tmp_path):
    examples = finished_run / "model" / "examples"
    rows = json.loads(run("predict", examples, "--model", finished_run, "--json")[1])
    run("predict", examples, "--model", finished_run, "--out", tmp_path / "answers.json")
    assert rows == json.loads((tmp_path / "answers.json").read_text()) and len(rows) == 4


def complete(line: str) -> list[str]:
    """What bash would offer for the last word of a line."""
    environment = {"_OCT_HF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [sys.executable, "-m", "oct_hf.cli"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("oct-hf pred", ["predict"]),
        ("oct-hf finetune octd", ["octdl"]),
        ("oct-hf finetune octdl train.ep", ["train.epochs="]),
        ("oct-hf data prepare srin", ["srinivasan2014"]),
        ("oct-hf predict scans/ --backend openvino-b", ["openvino-bf16"]),
        ("oct-hf predict scans/ --over", ["--overwrite"]),
    ],
)
def test_a_shell_completes_verbs_recipes_keys_and_backends(line, offered):
    assert complete(line) == offered


@pytest.mark.parametrize("arguments", [["data", "list"], ["data", "list", "--json"], ["predict", "--help"], ["--help"]])
def test_a_closed_pipe_ends_it_without_a_word(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "oct_hf.cli", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "oct_hf.cli", "data", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "error: the output: No space left on device\n"


def test_no_color_is_obeyed():
    coloured = re.compile(r"\x1b\[[\d;]*3\d")
    command = [sys.executable, "-m", "oct_hf.cli", "--help"]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"FORCE_COLOR": "1"}
    for more, expected in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True).stdout
        assert bool(coloured.search(shown)) == expected


def test_a_name_that_is_no_utf_8_is_printed_escaped(run, finished_run, bscan, tmp_path):
    from PIL import Image

    Image.fromarray(bscan).save(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff scan.png")
    except OSError:
        pytest.skip("names here are UTF-8")
    command = [sys.executable, "-m", "oct_hf.cli", "predict", str(tmp_path), "--model", str(finished_run)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "udcff scan.png" in done.stdout
    assert json.loads(run("predict", tmp_path, "--model", finished_run, "--json")[1])[0]["file"].endswith("scan.png")
