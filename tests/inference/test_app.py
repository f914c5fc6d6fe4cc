"""The page in a real browser: Debian's chromium without a window, and a server on a thread of this process."""

import base64
import csv
import io
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from oct_hf import Predictor, serving
from oct_hf.data.phantom import draw
from oct_hf.evaluation.operating_points import at_prevalence
from oct_hf.inference.app import LAST_SECONDS
from oct_hf.inference.app.server import HEADERS, running_app
from oct_hf.inference.app.visit import Visit
from oct_hf.inference.gate import NOT_OCT
from oct_hf.inference.recorded import recorded_gate, recorded_rule
from tests.sharpened import sharpen

NASTY = "<img src=x onerror=alert(1)> ${document.title='broken'} {{this}} `x` ä.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Phantoms of the four labels."""
    folder, files = tmp_path_factory.mktemp("pictures"), []
    for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
        files.append(folder / f"{label} ä.png")
        Image.fromarray(draw(label, 3, height=248, width=256).image).save(files[-1])
    return files


@pytest.fixture(scope="module")
def model(finished_run, pictures, tmp_path_factory) -> Path:
    """The finished run's model with a rule that is sure of one of the pictures and unsure of the others."""
    folder = tmp_path_factory.mktemp("app") / "model"
    shutil.copytree(finished_run / "model", folder)
    sharpen(folder)
    answers = Predictor(folder, images=1).predict(pictures)
    least, next_least, *_ = sorted(sorted(answer.probabilities.values())[-2] for answer in answers)
    assert next_least - least > 1e-3
    run = json.loads((folder / "run.json").read_text())
    run["gate"]["conformal"]["threshold"] = 1 - (least + next_least) / 2
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def expected(model):
    """What the predictor says of a file, with the model's gate."""
    predictor = Predictor(model, images=1)
    predictor.gate = recorded_gate(model, predictor.labels)
    return lambda file: next(predictor.predict([file]))


@pytest.fixture(scope="module")
def served(model):
    """The page's address, the folder through which files pass, and what Gradio keeps of its visitors."""
    taken = serving.take_port(0)
    with running_app(str(model)) as app, serving.running(app, taken, LAST_SECONDS):
        passing = Path(os.environ["GRADIO_TEMP_DIR"])
        holder = next(route.app.state_holder for route in app.routes if hasattr(route.app, "state_holder"))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/", passing, holder
    assert not passing.exists()


@pytest.fixture(scope="module")
def window(browser):
    """One window for all tests, so that scripts and styles are fetched once; every request it makes is kept."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.asked = []
    context.on("request", lambda request: context.asked.append(request.url))
    yield context
    context.close()


@pytest.fixture
def page(window, served):
    """The page, opened anew."""
    page = window.new_page()
    page.broken = []
    page.on("pageerror", lambda error: page.broken.append(str(error)))
    page.on("dialog", lambda dialog: page.broken.append(dialog.message))
    page.set_default_timeout(60_000)
    page.goto(served[0])
    page.wait_for_selector("#files input[type=file]", state="attached")
    yield page
    assert page.broken == []
    page.close()


def give(page, *files) -> None:
    """Chooses files in the page's own dialogue, and waits until they are answered."""
    page.set_input_files("#files input[type=file]", [str(file) for file in files])
    answered(page)


def answered(page) -> None:
    page.wait_for_function("!/^(Reading|At most)/.test(document.querySelector('#status').innerText)")
    page.wait_for_selector("#detail .file, #status .failed", state="attached")


def status(page) -> str:
    return page.inner_text("#status").strip()


def bars(page, number: int = 0) -> dict[str, float]:
    """The probabilities that the page shows."""
    rows = page.locator("#detail table.bars").nth(number).locator("tr").all()
    return {
        row.locator("th").inner_text().split("\n")[0].split(" ")[0]: float(row.locator(".value").inner_text())
        for row in rows
    }


def table(page) -> list[dict]:
    """The CSV as it is downloaded."""
    with page.expect_download() as download:
        page.click("text=Download the answers")
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))


def test_the_page_says_what_predict_says(page, pictures, expected, model):
    give(page, *pictures)
    assert status(page) == "4 answered"
    rows = table(page)
    assert [row["file"] for row in rows] == [file.name for file in pictures]
    said = [str(expected(file).decision) for file in pictures]
    assert [row["answer"] for row in rows] == said
    assert sum(one.startswith("unsure: ") for one in said) == 3, said
    for number, file in enumerate(pictures):
        page.click(f"#listing button[data-number='{number}']")
        page.wait_for_function("name => document.querySelector('#detail .file')?.innerText === name", arg=file.name)
        found = expected(file)
        assert page.inner_text("#detail h2") == str(found.decision)
        assert bars(page) == pytest.approx(found.probabilities, abs=6e-4)  # three digits are shown
        assert {name: float(rows[number][f"p_{name}"]) for name in found.probabilities} == pytest.approx(
            found.probabilities, abs=1e-6
        )
    assert "For research, not for diagnosis." in page.inner_text("#detail")


def test_thirty_files_at_once_by_drag_and_drop(page, pictures):
    names = [f"{number:02}.png" for number in range(30)]
    encoded = [base64.b64encode(file.read_bytes()).decode() for file in pictures]
    page.evaluate(
        """([names, encoded]) => {
            const carried = new DataTransfer();
            names.forEach((name, number) => {
                const bytes = Uint8Array.from(atob(encoded[number % encoded.length]), (one) => one.charCodeAt(0));
                carried.items.add(new File([bytes], name));
            });
            const zone = document.querySelector("#files button");
            zone.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
        }""",
        [names, encoded],
    )
    answered(page)
    assert status(page) == "30 answered" and page.locator("#listing tbody tr").count() == 30
    assert [row["file"] for row in table(page)] == names


def test_a_picture_is_pasted(page, pictures):
    page.evaluate(
        """bytes => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));
        }""",
        list(pictures[1].read_bytes()),
    )
    answered(page)
    assert status(page).startswith("image.png: ")


def test_what_is_wrong_with_a_file_is_one_line(page, tmp_path, pictures):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("L", (4100, 4100)).save(tmp_path / "bomb.png")
    (tmp_path / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(64))
    bad = [tmp_path / name for name in ("notes.txt", "empty.png", "bomb.png", "scan.dcm")]
    give(page, pictures[0], *bad)
    said = {row["file"]: row["error"] for row in table(page)}
    assert "is not an image" in said["notes.txt"] and said["empty.png"] == "is empty (0 bytes)"
    assert said["bomb.png"] == "has 4100x4100 pixels, more than 16 megapixels" and said["scan.dcm"]
    assert not any("/" in one for one in said.values()), "where a file lay is nobody's business"
    assert "1 of 5 answered" in status(page) and "\n" not in status(page)
    assert page.inner_text("#detail .file") == pictures[0].name


def test_too_many_files_are_refused_before_any_is_read(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as many:
        for number in range(101):
            many.writestr(f"{number}.png", b"")
    give(page, tmp_path / "many.zip")
    assert status(page) == "101 files are too many: at most 100 at once here; oct-hf predict takes any number"


def test_what_is_no_bscan_gets_no_probabilities(page, tmp_path, expected):
    noise = np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    assert str(expected(tmp_path / "photo.png").decision) == NOT_OCT
    give(page, tmp_path / "photo.png")
    assert page.inner_text("#detail h2") == NOT_OCT and page.locator("#detail table.bars").count() == 0
    assert not page.locator("#heat").is_visible()
    assert float(table(page)[0]["p_CNV"]) >= 0  # as in predict's table


def test_a_zip_is_read_in_place(page, tmp_path, pictures):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as scans:
        for file in pictures[:2]:
            scans.write(file, f"inside/{file.name}")
    give(page, tmp_path / "scans.zip")
    assert [row["file"] for row in table(page)] == [f"scans.zip/inside/{file.name}" for file in pictures[:2]]


def test_a_volume_is_one_answer_for_the_eye_with_its_bscans_marked(page, tmp_path, model):
    from oct_hf import answer_eyes
    from tests.data.volumes.write import SECRETS, bscans, write_vol

    file = write_vol(tmp_path / "scan.vol", bscans())
    predictor = Predictor(model, images=1)
    (eye,) = answer_eyes(predictor, file, recorded_rule(model)[0])
    give(page, file)
    assert page.inner_text("#detail h2") == eye.predicted
    assert bars(page) == pytest.approx(dict(zip(eye.labels, eye.probabilities, strict=True)), abs=6e-4)
    driving = eye.driving[0]
    assert bars(page, 1) == pytest.approx(dict(zip(eye.labels, eye.bscans[driving], strict=True)), abs=6e-4)
    assert f"wide and numbered are {', '.join(map(str, eye.driving))}" in page.get_attribute("#en-face img", "alt")
    other = next(number for number in range(5) if number != driving)
    page.locator("#number input[type=number]").fill(str(other))
    page.wait_for_function(f"document.querySelector('#detail h3').innerText === 'B-scan {other}'")
    assert bars(page, 1) == pytest.approx(dict(zip(eye.labels, eye.bscans[other], strict=True)), abs=6e-4)
    page.click(f"#detail button[data-number='{driving}']")
    page.wait_for_function(f"document.querySelector('#detail h3').innerText === 'B-scan {driving}'")
    rows = table(page)
    assert [row["level"] for row in rows] == ["bscan"] * 5 + ["eye"] and rows[-1]["file"] == "scan.vol"
    assert not any(secret in page.content() for secret in SECRETS)


def test_the_heat_map_lies_over_the_bscan_as_opaque_as_wanted(page, pictures):
    pytest.importorskip("captum")
    give(page, pictures[0])
    page.check("#heat input[type=checkbox]")
    heat = page.wait_for_selector("#picture img.heat")
    assert heat.bounding_box() == page.query_selector("#picture .stack img").bounding_box()
    slider = page.locator("#opacity input[type=range]")
    slider.focus()
    before = heat.evaluate("it => +getComputedStyle(it).opacity")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => +getComputedStyle(document.querySelector('img.heat')).opacity > before", arg=before
    )
    assert before == pytest.approx(0.65)
    page.uncheck("#heat input[type=checkbox]")
    page.wait_for_selector("#picture img.heat", state="detached")


def test_predictive_values_follow_the_prevalence_and_the_operating_point(page, model, pictures, expected):
    run = json.loads((model / "run.json").read_text())
    points = run["operating_points"]
    view = points["diseases"]["DME"]["at_sensitivity"]
    give(page, pictures[1])
    page.click("#point input")
    page.click("text='DME, sensitivity 0.95'")
    page.wait_for_function("document.querySelector('#points').innerText.includes('for DME')")
    for percent in (10, 40):
        page.locator("#prevalence input[type=number]").fill(str(percent))
        page.wait_for_function(f"document.querySelector('#points').innerText.includes('where {percent} %')")
        wanted = at_prevalence(view["test"]["sensitivity"], view["test"]["specificity"], percent / 100)
        shown = {name: page.inner_text(f"#{name}") for name in ("ppv", "npv")}
        assert shown == {name: "n/a" if value is None else f"{value:.3f}" for name, value in wanted.items()}
    positive = expected(pictures[1]).probabilities["DME"] >= view["threshold"]
    assert page.inner_text("#points p").startswith("Positive" if positive else "Negative")


@pytest.mark.promise("Labels and file names are text wherever they are shown; nothing obeys them.")
def test_names_and_labels_from_outside_are_shown_and_never_run(page, pictures, tmp_path):
    shutil.copy(pictures[0], tmp_path / NASTY.replace("/", ""))
    give(page, tmp_path / NASTY)
    assert page.inner_text("#detail .file") == NASTY and page.title() != "broken"
    assert table(page)[0]["file"] == NASTY


def test_the_card_is_there_with_its_own_pictures_only(page, model):
    page.click("[role=tab]:has-text('Model card')")
    page.wait_for_selector("#card img")
    sources = page.eval_on_selector_all(
        "#card img", "all => all.map(one => [one.src.slice(0, 15), one.naturalWidth > 0])"
    )
    assert sources and all(source == ["data:image/png;", True] for source in sources)
    assert "For research, not for diagnosis." in page.inner_text("#card")


def test_every_control_is_reached_and_worked_by_keyboard(page, pictures):
    give(page, *pictures[:2])
    page.focus("#listing button[data-number='1']")
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#detail .file')?.innerText === name", arg=pictures[1].name)
    assert page.evaluate("document.activeElement.dataset.number") == "1"
    wanted, reached = {"files", "listing", "clear", "heat", "opacity", "point", "prevalence"}, set()
    nearest = "wanted => document.activeElement.closest(wanted.map(id => '#' + id).join())?.id"
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(nearest, sorted(wanted)))
    assert wanted <= reached


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_serious_and_a_phone_needs_no_sideways_scrolling(
    browser, served, axe, pictures, tmp_path, scheme, width
):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(served[0])
    page.wait_for_selector("#files input[type=file]", state="attached")
    (tmp_path / ("a_very_long_name_" * 8 + ".txt")).write_text("no picture")
    give(page, *pictures[:2], *tmp_path.glob("a_very*"))
    page.evaluate(axe)
    for tab in ("B-scans", "Model card", "Limits"):
        page.click(f"[role=tab]:has-text('{tab}')")
        page.wait_for_timeout(200)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], tab
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
    context.close()


def test_nothing_is_asked_of_anybody_else_and_nothing_is_kept(window, page, served, pictures):
    address, passing, _ = served
    give(page, *pictures)
    assert all(url.startswith((address, "data:", "blob:")) for url in window.asked)
    assert [file for file in passing.rglob("*") if file.is_file()] == []
    response = page.request.get(address)
    assert {name: response.headers[name.lower()] for name in HEADERS} == HEADERS
    page.click("#clear")
    page.wait_for_selector("#detail table", state="detached")
    assert page.locator("#listing table").count() == 0


def test_answers_are_forgotten_when_the_tab_is_closed(page, served, pictures):
    def kept() -> list:
        values = [value for session in served[2].session_data.values() for value in session.state_data.values()]
        return [value for value in values if isinstance(value, Visit) and value.answers]

    give(page, pictures[0])
    mine = kept()[-1]
    page.close()
    until = time.monotonic() + 30
    while any(value is mine for value in kept()):
        assert time.monotonic() < until, "still in memory"
        time.sleep(0.05)
