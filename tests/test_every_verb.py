"""Every verb with what people get wrong: one line that names it, exit code 2, and no traceback."""

import json
import shutil

import pytest

NOTHING = """
finetune | tune | ensemble | adapt | evaluate | compare | predict | explain | export | generate | publish | publish-data
verify | serve | hub | data prepare | data check | data show | data labels
"""
# A place that isn't there, is empty, is a file, or is an archive that is none; RUN is a finished run.
WRONG_PATH = """
finetune folder --data gone | finetune folder --data empty | finetune folder --data file | finetune gone.yaml
finetune file.yaml | finetune --rerun empty | finetune demo --data gone | finetune small.yaml base=gone/model
tune gone.yaml | tune folder --data gone | tune demo --space gone.yaml | tune demo --space file.yaml
ensemble gone RUN | ensemble RUN empty
adapt RUN --data gone --out here | adapt RUN --data empty --out here | adapt RUN --data file --out here
evaluate RUN --data gone | evaluate RUN --data empty | evaluate RUN --data file
compare RUN | compare RUN RUN
predict gone -m RUN | predict empty -m RUN | predict EXAMPLES gone -m RUN
explain gone -m RUN | explain empty -m RUN
export RUN --to onnx-int8 --data gone --out here
generate gone --out here | generate folder --data gone --out here
publish gone --repo you/x | publish empty --repo you/x | publish file --repo you/x
publish-data gone --repo you/x | publish-data folder --data gone data.license=cc0-1.0 --repo you/x --dry-run
publish-data folder --data empty data.license=cc0-1.0 --repo you/x --dry-run
verify RUN --data gone
data prepare gone | data prepare empty | data prepare file | data prepare octdl --data gone
data check gone | data check empty | data check demo --split gone | data check small.yaml --split file
data show gone | data show empty | data labels gone --out here | data labels empty --out here
"""
# None at all, an empty folder, a file, a broken config, weights cut short, a language model, one of no known kind.
WRONG_MODEL = """
evaluate gone | evaluate empty | evaluate file | evaluate broken
ensemble RUN gone --out here | ensemble RUN broken --out here
adapt gone --data EXAMPLES --out here | adapt empty --data EXAMPLES --out here
adapt broken --data EXAMPLES --out here | adapt cut --data EXAMPLES --out here
compare RUN gone | compare RUN empty | compare RUN file
predict EXAMPLES -m gone | predict EXAMPLES -m empty | predict EXAMPLES -m file | predict EXAMPLES -m broken
predict EXAMPLES -m cut | predict EXAMPLES -m words | predict EXAMPLES -m unheard
explain EXAMPLES -m gone | explain EXAMPLES -m empty | explain EXAMPLES -m file | explain EXAMPLES -m broken
explain EXAMPLES -m cut | explain EXAMPLES -m words
export gone --to onnx | export empty --to onnx | export file --to onnx | export broken --to onnx
export cut --to onnx --out here | export words --to onnx --out here
export RUN --to cascade --small gone --out here
generate RUN --out here | finetune --rerun gone
publish broken --repo you/x --dry-run
verify gone | verify you/gone | verify empty | verify file | verify broken
serve gone --port 0 | serve empty --port 0 | serve file --port 0 | serve broken --port 0 | serve cut --port 0
serve words --port 0
"""
# file/x can't be made, whoever asks.
NO_ROOM = """
finetune demo --out file/x | finetune demo --folds 2 --out file/x | tune demo --out file/x
ensemble RUN RUN --out file/x | adapt RUN --data EXAMPLES --out file/x | adapt RUN --data EXAMPLES --out empty
evaluate RUN --out file/x.parquet | evaluate RUN --out gone/x.parquet | compare RUN RUN2 --figure file/x.png
predict EXAMPLES -m RUN --out file/x.csv | predict EXAMPLES -m RUN --out folder.csv
predict EXAMPLES -m RUN --en-face file/x
explain EXAMPLES -m RUN --out file/x | explain EXAMPLES -m RUN --out file
export RUN --to onnx --out file/x | export RUN --to onnx --out file
generate demo --out file/x
publish-data demo --repo you/x --dry-run --out file/x | publish-data demo --repo you/x --dry-run --out empty
hub --root file/x | hub --root file
data prepare demo --out file/x | data show demo --out file/x.html | data show demo --out gone/x.html
data labels demo --out file/x
"""
MISSPELT = {
    "predcit EXAMPLES": "predict",
    "data lst": "list",
    "predict EXAMPLES --modle RUN": "--model",
    "info --jsn": "--json",
    "finetune demmo": "demo",
    "finetune demo epoch=3": "epochs",
    "finetune demo loss=focall": "focal",
    "finetune demo data.name=octdll": "octdl",
    "finetune small.yaml base=tf_efficientnetv2_bO": "tf_efficientnetv2_b",
    "data prepare octd": "octdl",
    "data check oct2071": "oct2017",
    "predict EXAMPLES -m RUN --backend onx": "onnx",
    "predict EXAMPLES -m RUN --rule men": "mean",
    "predict EXAMPLES -m RUN --engine rey": "ray",
    "explain EXAMPLES -m RUN --method integrated_gradient": "integrated_gradients",
    "explain EXAMPLES -m RUN --label DMEE": "DME",
    "export RUN --to onx": "onnx",
    "serve RUN --runtime onx --port 0": "onnx",
    "tune demo --engine rey": "ray",
}
OTHER = """
evaluate RUN --prevalence 2 | evaluate RUN --record | compare RUN RUN2 --permutations 3
finetune demo --seeds 1 | finetune demo train.epochs=many | predict EXAMPLES -m RUN --batch-size 0
predict EXAMPLES -m RUN --out x.xlsx | data show demo --out x.txt | generate demo --out here --image-size 13
publish RUN --repo bad//id | publish RUN --repo you/x --gated maybe | serve RUN --port 99999
serve RUN --host 999.1.1.1 | adapt RUN --data EXAMPLES --out here | adapt RUN --data EXAMPLES --out here --most 3
"""


def _commands(text: str) -> list[str]:
    return [command.strip() for line in text.split("\n") if line for command in line.split("|")]


@pytest.fixture(scope="module")
def place(finished_run, tiny, tmp_path_factory):
    """A folder of everything that is wrong, and a recipe that is right."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "folder.csv").mkdir()
    for name in ("file", "picture.png", "file.yaml"):
        (folder / name).write_text("- neither, nor\n")
    for name, config in {
        "broken": "{",
        "unheard": '{"model_type": "unheard_of"}',
        "words": '{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
    (folder / "small.yaml").write_text(tiny.to_yaml())
    shutil.copytree(finished_run / "model", folder / "RUN2")
    shutil.copytree(finished_run / "model", folder / "cut", ignore=shutil.ignore_patterns("onnx"))
    whole = (folder / "cut" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(whole[:500])
    return folder


@pytest.fixture
def refused(run, finished_run, place, monkeypatch):
    """Runs a command that must be refused; gives its one line."""
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))

    def call(command: str) -> str:
        names = {"RUN": finished_run, "EXAMPLES": finished_run / "model" / "examples"}
        code, out, said = run(*(names.get(word, word) for word in command.split()))
        assert (code, out) == (2, "") and said.startswith("error: ") and len(said.strip().splitlines()) == 1, said
        assert sorted(place.rglob("*")) == before
        return said

    return call


@pytest.mark.parametrize("command", _commands(NOTHING))
def test_nothing_given(refused, command):
    said = refused(command)
    assert "missing" in said or "which recipe" in said


@pytest.mark.parametrize("command", _commands(WRONG_PATH + WRONG_MODEL + NO_ROOM + OTHER))
def test_what_is_wrong_is_named(refused, command):
    said = refused(command)
    wrong = [
        word
        for word in command.replace("=", " ").split()
        if word.split("/")[0].split(".")[0] in ("gone", "empty", "file", "broken", "cut", "words", "unheard", "picture")
    ]
    assert not wrong or any(word in said for word in wrong)


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_pictures_that_are_none_are_told_in_their_rows_and_end_with_2(run, finished_run, place, tmp_path, verb):
    more = ["--out", tmp_path / "heat"] if verb == "explain" else []
    code, out, said = run(verb, place / "picture.png", "-m", finished_run, "--json", *more)
    assert code == 2 and "1 file(s) couldn't be read" in said
    assert [row["error"] for row in json.loads(out)] == ["is not an image (it is text)"]


@pytest.mark.parametrize("command", MISSPELT)
def test_the_nearest_name_is_told(refused, command):
    said = refused(command)
    assert "did you mean" in said or MISSPELT[command] in said
    assert MISSPELT[command] in said
