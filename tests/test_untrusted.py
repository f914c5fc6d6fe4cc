"""What strangers name: shown and written so that neither terminal nor spreadsheet obeys it."""

import csv
import json

import pytest
from PIL import Image

from oct_hf.untrusted import MOST_JSON, cell, json_of, read_json, shown

ORDERS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r"
PROMISE = pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")


@PROMISE
def test_orders_to_a_terminal_are_seen_and_not_obeyed(cases):
    for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x61C):
        letter = chr(code)
        cases.tried += 1
        assert shown(f"a{letter}b") == (f"a{letter}b" if letter in "\n\t" else f"a{ascii(letter)[1:-1]}b")
    assert shown("β-Zapfen, 網膜 – ä\u200c") == "β-Zapfen, 網膜 – ä\u200c"


@PROMISE
def test_a_formula_is_a_text_in_a_table(cases):
    for text in ('=HYPERLINK("http://x","y")', "+1+1", "-2+3", "@SUM(A1)", "\t=1"):
        cases.tried += 1
        assert cell(text) == f"'{text}"
    for value in ("a=1", "1-2", "", None, -0.5, 3):
        assert cell(value) == value
    assert cell("a\r=1+1") == "a\\r=1+1"  # which would begin a row of its own


@PROMISE
def test_a_hostile_file_name_is_one_row_of_text_in_every_form(run, finished_run, bscan, tmp_path):
    names = [f"=cmd{ORDERS}.png", "-2+3.png", "@x.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.fromarray(bscan).save(tmp_path / "in" / name)
    arguments = ("predict", tmp_path / "in", "--model", finished_run, "--always-answer")
    code, out, err = run(*arguments)
    assert code == 0 and not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(out + err) and "\\x1b]0;owned" in out
    code, out, _ = run(*arguments, "--json")
    assert code == 0 and not {"\x1b", "\x9b", "\u202e"} & set(out)
    assert sorted(row["file"].rpartition("/")[2] for row in json.loads(out)) == sorted(names)
    (tmp_path / "elsewhere").mkdir()
    for form in ("csv", "json"):
        assert run(*arguments, "--out", tmp_path / f"elsewhere/a.{form}")[0] == 0
    with open(tmp_path / "elsewhere/a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 4 and len({len(row) for row in rows}) == 1
    assert not any(text.startswith(("=", "+", "@")) for row in rows for text in row)
    code, _, err = run("predict", tmp_path / f"none{ORDERS}.png", "--model", finished_run)
    assert code == 2 and "\x1b" not in err and "\\x1b" in err


def test_json_is_bounded_in_size_and_depth(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        json_of("[" * 100_000)
    (tmp_path / "a.json").write_text(" " * (MOST_JSON + 1))
    with pytest.raises(ValueError, match="more than 16 MB"):
        read_json(tmp_path / "a.json")
