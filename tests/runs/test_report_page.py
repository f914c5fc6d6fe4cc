"""The report in a real browser: whole, without a network, and without what hinders people with disabilities."""

import json
import re

import numpy as np
import pytest
import yaml

from oct_hf.evaluation.predictions import Predictions
from oct_hf.runs.explained import WrongAnswer
from oct_hf.runs.report_page import ITEMS, checklists, write_report

SECTIONS = ("results", "calibration", "thresholds", "abstention", "subgroups", "errors", "explanations", "split")


@pytest.fixture(scope="module")
def facts(finished_run):
    return json.loads((finished_run / "run.json").read_text())


def test_the_report_shows_every_figure_with_words_for_those_who_can_not_see_it(finished_run, facts):
    text = (finished_run / "report.html").read_text()
    assert "<script" not in text and not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    for section in SECTIONS:
        assert f'id="{section}"' in text
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) >= 6 and all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    assert f"<strong>{facts['results']['test']['balanced_accuracy']:.3f}</strong> balanced accuracy" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_axe_finds_nothing_and_no_request_leaves_the_page(finished_run, browser, axe, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((finished_run / "report.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    faults = [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found["violations"]]
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert faults == [] and overflow <= 0
    assert [url[:40] for url in asked if not url.startswith(("data:", "file:"))] == []


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_names_from_outside_are_shown_and_never_run(facts, finished_run, tmp_path, browser):
    evil = "<img src=x onerror=document.title='broken'>"
    run = facts | {"name": evil, "data": facts["data"] | {"title": evil, "license": evil}}
    predictions = Predictions.read(finished_run / "model" / "predictions.parquet")
    image = np.zeros((20, 30), np.uint8)
    write_report(tmp_path / "r.html", run, predictions, [WrongAnswer(image, None, evil, evil, 0.9, evil)])
    page = browser.new_page()
    page.goto((tmp_path / "r.html").as_uri())
    title, names = page.title(), page.locator("h1").inner_text()
    page.close()
    assert title == f"Report: {evil}" and names == evil


def test_each_item_of_a_guideline_is_answered_by_a_section_a_person_or_nothing(facts, finished_run):
    known = {f'id="{name}"' for name in re.findall(r'id="([a-z]+)"', (finished_run / "report.html").read_text())}
    for guideline in checklists(facts, True):
        for row in guideline["rows"]:
            assert row["section"] is None or f'id="{row["section"]}"' in known, row
            assert not (row["section"] and row["author"])
    rows = {row["item"]: row for row in checklists(facts, True)[0]["rows"]}
    assert rows["12d"]["section"] is None  # no other hospital was measured
    rows = {row["item"]: row for row in checklists(facts | {"external": [{}]}, True)[0]["rows"]}
    assert rows["12d"]["section"] == "external"
    items = [item["item"] for item in yaml.safe_load(ITEMS.read_text())[0]["items"]]
    assert {re.match(r"\d+", item)[0] for item in items} == {str(number) for number in range(1, 28)}
