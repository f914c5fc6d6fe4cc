"""The page in a real browser: Debian's chromium without a window."""

import csv
import html.parser
import io
import os
import re
import subprocess

import numpy as np
import pytest

from oct_hf.data.phantom import draw
from oct_hf.evaluation.label_errors import Suspect
from oct_hf.evaluation.label_page import Shown, label_page, small_picture

NASTY = "</script><script>document.title='broken'</script>\"'&<img src=x onerror=alert(1)>"
NAMES = ("CNV", "DME", NASTY)


def suspect(row, given="CNV", suggested="DME"):
    p = {name: 0.1 for name in NAMES} | {suggested: 0.8}
    return Suspect(row, f"{row:064x}", "P00001", given, suggested, 0.15, p, 1, 2, 0.3)


def make_page(**changes):
    picture = draw("CNV", 1, height=96, width=128).image
    shown = [
        Shown(suspect(0), picture, "OD", "CNV/a.png", [(picture, "CNV")]),
        Shown(suspect(1, given=NASTY), picture, source=NASTY),
        Shown(suspect(2), np.dstack([picture] * 3)),
    ]
    earlier = [{"content_hash": "ff", "label": "DME", "given_label": "CNV", "decision": "change", "note": 'a, "b"'}]
    known = {"title": NASTY, "images": 1234, "found": 3, "folds": 5, "fingerprint": "abc", "earlier": earlier}
    return label_page(shown, NAMES, **(known | changes))


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def after(chromium, tmp_path):
    """A function that gives the page as it is after `script` ran in it."""
    command = chromium

    def run(page, script, folder=tmp_path):
        path = folder / "labels.html"
        path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        options = ["--headless", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        result = subprocess.run(
            [command, *options, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60
        )
        return result.stdout

    return run


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_labels_and_file_names_are_shown_and_never_run(after):
    page = make_page()
    tags = Tags(page)
    assert len(tags.of("script")) == 2 and all(not t.get("src") for t in tags.of("script"))
    assert all("onerror" not in t and t["src"].startswith("data:image/jpeg") for t in tags.of("img"))
    assert "broken" not in re.search("<title>(.*)</title>", after(page, "")).group(1).replace("'broken'", "")


def test_the_page_reaches_for_nothing_outside_itself():
    tags = Tags(make_page())
    assert not tags.of("link") and not tags.of("iframe") and not tags.of("a")
    policy = next(t["content"] for t in tags.of("meta") if t.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"https?://|url\(|@import", make_page())


def test_every_control_has_a_name_and_every_picture_a_text():
    tags = Tags(make_page())
    assert all(t["alt"] for t in tags.of("img"))
    named = {t["for"] for t in tags.of("label") if "for" in t}
    texts = [t for t in tags.of("input") if t["type"] == "text"]
    assert texts and all(t["id"] in named for t in texts)
    assert len(tags.of("fieldset")) == len(tags.of("legend")) == len(tags.of("article")) == 3


DECIDE = """
const pick = (number, value) => document.querySelector(`#i${number} input[value="${value}"]`).click();
pick(1, "change"); pick(2, "keep");
const note = document.querySelector("#n1"); note.value = 'cysts, "two"';
note.dispatchEvent(new Event("input", {bubbles: true}));
reviewer.value = "R"; reviewer.dispatchEvent(new Event("input", {bubbles: true}));
"""
TELL = """
const out = document.createElement("pre");
out.id = "out";
out.textContent = corrections();
document.body.append(out);
"""


def saved(dom):
    text = html.unescape(re.search('<pre id="out">(.*?)</pre>', dom, re.DOTALL).group(1))
    return list(csv.DictReader(io.StringIO(text)))


def test_decisions_are_counted_and_saved_with_those_made_earlier(after):
    dom = after(make_page(), DECIDE + TELL)
    assert ">2 of 3 decided<" in dom
    assert not re.search(r'<button id="save"[^>]*disabled', dom)
    earlier, first, second = saved(dom)
    assert (earlier["content_hash"], earlier["note"]) == ("ff", 'a, "b"')
    assert first == {
        "content_hash": f"{0:064x}",
        "label": "DME",
        "given_label": "CNV",
        "decision": "change",
        "reviewer": "R",
        "note": 'cysts, "two"',
    }
    assert (second["label"], second["given_label"], second["decision"]) == (NASTY, NASTY, "keep")


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_a_spreadsheet_computes_nothing_that_a_reader_wrote(after):
    dom = after(make_page(), DECIDE.replace('cysts, "two"', "=1+1") + TELL)
    assert saved(dom)[1]["note"] == "'=1+1"


def test_a_closed_page_comes_back_with_its_decisions(after):
    after(make_page(), DECIDE)
    assert len(saved(after(make_page(), TELL))) == 3
    other_data = after(make_page(fingerprint="other"), TELL)
    assert len(saved(other_data)) == 1


def test_what_is_saved_is_what_the_builder_reads(after, tmp_path):
    from oct_hf.data.corrections import read_corrections

    dom = after(make_page(), DECIDE + TELL)
    text = html.unescape(re.search('<pre id="out">(.*?)</pre>', dom, re.DOTALL).group(1))
    path = tmp_path / "corrections.csv"
    path.write_text(text, encoding="utf-8")
    _, first, second = read_corrections(path)
    assert (first.label, first.given_label, first.note) == ("DME", "CNV", 'cysts, "two"')
    assert second.label == second.given_label == NASTY


def test_pictures_are_small_and_keep_their_shape():
    wide, tall = small_picture(np.zeros((496, 768), np.uint8), 320), small_picture(np.zeros((9, 4), np.uint8), 320)
    assert (wide["width"], wide["height"]) == (320, 207) and (tall["width"], tall["height"]) == (4, 8)
    small = small_picture(np.zeros((248, 256), np.uint8), 320)
    assert (small["width"], small["height"]) == (256, 248)


def test_a_page_without_suspects_says_so():
    page = label_page([], NAMES, title="x", images=10, found=0, folds=2, fingerprint="a")
    assert "No label looks wrong." in page


def test_the_limit_of_the_page_is_stated():
    assert "The 3 surest are here" in make_page(found=500)
