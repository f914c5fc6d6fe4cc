"""What comes from outside, changed at random: always an answer or a reason, never a crash, a hang or a full memory."""

import itertools
import json
import os
import random
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oct_hf.errors import ModelError, RecipeError
from oct_hf.inference.description import load_description
from oct_hf.model.stated import config_fault
from oct_hf.packaged import packaged
from oct_hf.training.recipe_file import load_recipe, make_recipe
from tests.data.volumes.kinds import KINDS

MOST_SECONDS = 5  # a case
MOST_MEMORY = 2048  # MB
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and measured as Linux does")
PROMISE = pytest.mark.promise("A changed or damaged file is read or refused: no crash, no hang, no more than 2 GB.")
ROOT = Path(__file__).parents[1]


def fuzz(kind: str, count: int, folder: Path, real: list[Path] = (), seed: int = 0) -> Counter:
    """How so many cases ended, read in a process of its own that is watched."""
    folder.mkdir(exist_ok=True)
    # Address space, of which threads and libraries take more than memory; how much memory it was is told at the end.
    told = {"kind": kind, "seed": seed, "count": count, "folder": str(folder), "memory": 6 << 30}
    command = [sys.executable, "-m", "tests.fuzzing", json.dumps(told | {"real": [*map(str, real)]})]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)
    ended, line, began, used = Counter(), b"", time.monotonic(), 0.0
    while (chunk := _next(child, 1.0)) != b"":
        if chunk is None:
            # A busy machine is no hang: what counts is the processor's time.
            now = _cpu_seconds(child.pid)
            if (line.strip() and now - used > MOST_SECONDS) or time.monotonic() - began > 300:
                child.kill()
                raise AssertionError(f"{kind}, seed {seed}, case {line.decode()}: takes more than {MOST_SECONDS} s")
            continue
        began, used = time.monotonic(), _cpu_seconds(child.pid)
        *whole, line = (line + chunk).split(b"\n")
        ended.update(said.split()[-1].decode() for said in whole if said and not said.startswith(b"memory"))
        for said in whole:
            if said.startswith(b"memory"):
                assert int(said.split()[1]) < MOST_MEMORY, f"{kind}: took {said.split()[1]} MB"
    errors = child.stderr.read().decode(errors="replace")
    assert child.wait() == 0, f"{kind}, seed {seed}, case {line.decode()}: exit {child.returncode}\n{errors[-3000:]}"
    assert ended.total() == count
    return ended


def _next(child: subprocess.Popen, seconds: float) -> bytes | None:
    """What it said next; None where it said nothing in this time, and no bytes at its end."""
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    return os.read(child.stdout.fileno(), 1 << 16) if ready else None


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@LINUX
@PROMISE
def test_changed_pictures_are_read_or_refused(samples, real_files, tmp_path, cases):
    neh = sorted((samples / "neh_sample").rglob("*.*"))
    pictures = [path for path in neh if path.suffix.lower() in (".tif", ".tiff", ".png", ".jpg", ".jpeg")][:5]
    ended = fuzz("images", cases(400, 10_000), tmp_path / "i", [*real_files, *pictures])
    assert set(ended) == {"read", "refused"}


@LINUX
@PROMISE
@pytest.mark.parametrize("kind", KINDS)
def test_changed_device_files_are_read_or_refused(kind, tmp_path, cases):
    ended = fuzz(kind, cases(25, 1000), tmp_path / "v")
    assert set(ended) <= {"read", "refused"} and ended["refused"]


# --- recipes and configs ---

NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["", "null", "=1+1", "../../etc/passwd", "1e999", "2001-99-99", "\x00", "\x1b[2J", "A" * 5000]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def paths(content, above=()) -> list[tuple]:
    """Where each value of nested mappings and lists stands."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(*above, key), *paths(value, (*above, key))]]


def with_value(content, place: tuple, value):
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = with_value(copy[place[0]], place[1:], value)
    return copy


def changed(content: dict, draw) -> dict:
    """The mapping with one to three values replaced, left out or added."""
    for _ in range(draw(st.integers(1, 3))):
        there = paths(content)
        place = draw(st.sampled_from(there)) if there else ()
        if place and draw(st.booleans()):
            content = with_value(content, place, draw(NASTY))
        else:
            content = {**content, draw(st.text(max_size=8)): draw(NASTY)}
    return content


def quick(count: int):
    """Hypothesis with so many examples, the same in each run; 5 s is what one may take."""
    ill = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    limits = {"deadline": MOST_SECONDS * 1000, "derandomize": True, "database": None, "suppress_health_check": ill}
    return settings(max_examples=count, **limits)


REFUSES = pytest.mark.promise("A recipe or config.json is taken or refused in one line, whatever stands in it.")


@REFUSES
def test_changed_recipes_are_recipes_or_refused(cases):
    sound = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in packaged("recipes").glob("*.yaml")]

    @quick(cases(60, 1000))
    @given(st.data())
    def one(data):
        content = changed(data.draw(st.sampled_from(sound)), data.draw)
        try:
            recipe = make_recipe(content)
        except RecipeError as error:
            assert str(error) and len(str(error)) < 5000
        else:
            assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe

    one()


@REFUSES
def test_changed_texts_of_recipes_are_recipes_or_refused(tmp_path, cases):
    texts = [path.read_text(encoding="utf-8") for path in packaged("recipes").glob("*.yaml")]
    bits = ["- ", ": ", "{", "[", "&a ", "*a", "? ", "|\n", "2001-99-99", "\t", "---\n"]
    bits += ["!!python/object/apply:os.system ", "!!int ", "!!binary "]

    @quick(cases(60, 1000))
    @given(st.sampled_from(texts), st.randoms(use_true_random=False))
    def one(text: str, chance: random.Random):
        for _ in range(chance.randint(1, 4)):
            at = chance.randint(0, len(text))
            put = chance.choice([*bits, chr(chance.randint(1, 0xD7FF))])
            text = text[:at] + put + text[at + chance.randint(0, 6) :]
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        try:
            load_recipe(tmp_path / "r.yaml")
        except RecipeError as error:
            assert "\n" not in str(error)

    one()


@REFUSES
def test_changed_configs_are_descriptions_or_refused(finished_run, tmp_path, cases):
    names = ("config.json", "preprocessor_config.json")
    sound = {name: json.loads((finished_run / "model" / name).read_text()) for name in names}

    @quick(cases(100, 1000))
    @given(st.data())
    def one(data):
        for name in names:
            (tmp_path / name).write_text(json.dumps(sound[name]))
        victim = data.draw(st.sampled_from(names))
        content = changed(sound[victim], data.draw)
        (tmp_path / victim).write_text(json.dumps(content))
        try:
            found = load_description(tmp_path)
        except ModelError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
        else:
            assert found.labels and all(isinstance(label, str) for label in found.labels)
            assert found.preprocessing.table().shape == (3, 256)
        if victim == "config.json":
            config_fault(content)

    one()


# Nine aliases of nine aliases, nine times: 387 million letters x in half a kilobyte.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        "name: 2001-99-99",  # a date that is none
        "name: !!int x",
        "name: " + "9" * 5000,
        "train: {epochs: !!timestamp a}",
        "name: " + "[" * 5000,
        LAUGHS,
        "name: &a [*a]",
    ],
)
def test_texts_that_once_broke_the_reading_of_recipes_are_one_line(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000


# --- the server ---


@pytest.mark.promise("Whatever a request holds, the server answers as its description says.")
def test_requests_of_every_kind_get_what_the_description_says(finished_run, cases):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    from oct_hf import Predictor
    from tests.inference.asking import served

    # What a schema can't say, whether bytes are a B-scan, makes a 400 of what it takes for valid.
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    with served(Predictor(finished_run / "model", batch_size=8)) as port:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        operations = {found.path: found for found in (operation.ok() for operation in schema.get_all_operations())}
        assert operations.keys() == {"/", "/health", "/metrics"}
        sound, broken = (operations["/"].as_strategy(generation_mode=mode) for mode in GenerationMode)
        kinds = {"sound": sound, "broken": broken}
        kinds |= {path: operations[path].as_strategy() for path in ("/health", "/metrics")}
        for name, kind in kinds.items():

            @quick(cases(25, 950) if name in ("sound", "broken") else cases(3, 50))
            @given(kind)
            def one(case):
                case.call_and_validate(checks=checks)

            one()
