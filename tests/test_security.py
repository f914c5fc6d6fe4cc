"""SECURITY.md promises what tests hold, no more and no less: its sentences are those of the tests' marks."""

import ast
import re
from pathlib import Path

TOP = Path(__file__).parents[1]
ROW = re.compile(r"^\| (?P<promise>[^|]+?) \| (?P<tests>`tests/[^|]+?) \|$", re.MULTILINE)


def promised() -> dict[str, set[str]]:
    """The sentences of SECURITY.md, each with the files that it names."""
    rows = list(ROW.finditer((TOP / "SECURITY.md").read_text(encoding="utf-8")))
    found = {row["promise"]: set(re.findall(r"`([^`]+)`", row["tests"])) for row in rows}
    assert len(found) == len(rows), "a sentence stands there twice"
    return found


def marked() -> dict[str, set[str]]:
    """The sentences of marks in tests/, each with the files that have one."""
    found: dict[str, set[str]] = {}
    for path in sorted((TOP / "tests").rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                sentence = ast.literal_eval(node.args[0])
                found.setdefault(sentence, set()).add(path.relative_to(TOP).as_posix())
    return found


def test_the_promises_are_those_that_tests_hold():
    assert promised() == marked()


def test_each_promise_is_one_plain_sentence():
    for sentence in marked():
        assert re.fullmatch(r"[A-Z][^|\n]{20,160}\.", sentence), sentence
