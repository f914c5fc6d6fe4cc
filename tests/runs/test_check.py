"""`oct-hf data`: what it says of clean and of leaky sets, and the page."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from oct_hf.data.phantom import LABELS, draw
from oct_hf.data.splits import write_split


@pytest.fixture
def published(tmp_path):
    """OCT2017's layout: patient 7 on both published sides, and a test image that came in again under patient 900."""
    root, number = tmp_path / "OCT2017", 0
    for side, count in (("train", 4), ("test", 2)):
        for label in LABELS:
            for index in range(count):
                number += 1
                patient = 7 if label == "CNV" and index == 0 else 100 + number
                path = root / side / label / f"{label}-{patient}-{index}.jpeg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw(label, 9, number, 0, 128, 128).image).save(path, quality=92)
    copied = np.asarray(Image.open(next((root / "test" / "DME").iterdir())))
    Image.fromarray(np.roll(copied, 3, axis=1)).save(root / "train" / "DME" / "DME-900-0.jpeg", quality=80)
    return root


def test_published_sides_that_share_patients_and_near_duplicates_are_named_and_the_recipe_mends_them(run, published):
    code, text, _ = run("data", "check", "oct2017", "--data", published, "validation=0.3")
    assert code == 1
    published_sides, mended = text.split("the recipe's split")
    assert "patient 7: on train and test" in published_sides
    assert re.search(r"near-duplicates train/DME/DME-900-0.jpeg and test/DME/\S+: on ", published_sides) or re.search(
        r"near-duplicates test/DME/\S+ and train/DME/DME-900-0.jpeg: on ", published_sides
    )
    assert "patient 7" not in mended and text.rstrip().endswith("not clean")
    code, text, _ = run("data", "check", "oct2017", "--data", published, "validation=0.3", "--json")
    told = json.loads(text)
    assert code == 1 and not told["clean"] and told["images"] == 25
    leaky, clean = told["splits"]
    assert leaky["certificate"]["patients_on_two_sides"] == 1
    assert leaky["certificate"]["near_duplicates"]["pairs_on_two_sides"] == 1
    assert clean["leaks"] == [] and clean["certificate"]["taken_out"] == {
        "patient_held_out": 1,
        "near_duplicate_held_out": 1,
    }


def test_test_patients_planted_in_train_are_counted_to_the_image_and_taken_out_of_training(run, tmp_path):
    names = [f"test/{label}/{label}-{patient}-1" for label, patient in zip(LABELS, (901, 902, 903, 99), strict=True)]
    names += ["train/CNV/CNV-901-7", "train/DME/DME-902-7", "train/DME/DME-902-8"]
    names += ["train/DRUSEN/DRUSEN-903-7", "train/DRUSEN/DRUSEN-903-8", "train/NORMAL/NORMAL-903-9"]  # two labels
    planted = len(names) - 4
    names += [f"train/{label}/{label}-{10 * at + n}-1" for at, label in enumerate(LABELS) for n in range(4)]
    for number, name in enumerate(names):
        path = tmp_path / "OCT2017" / f"{name}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("NORMAL", 9, number, 0, 96, 96).image).save(path, quality=92)
    code, text, _ = run("data", "check", "oct2017", "--data", tmp_path / "OCT2017", "validation=0.3", "--json")
    published, mended = json.loads(text)["splits"]
    assert code == 1 and published["certificate"]["patients_on_two_sides"] == 3
    assert published["counts"]["train"]["images"] == 22 and published["counts"]["test"]["images"] == 4
    assert [which for what, which, _ in published["offenders"] if what == "patient"] == ["901", "902", "903"]
    assert mended["leaks"] == [] and mended["certificate"]["taken_out"]["patient_held_out"] == planted == 6
    images = {side: row["images"] for side, row in mended["counts"].items()}
    assert images["train"] + images["validation"] == 22 - 6 and images["test"] == 4 and images["unused"] == 6


def test_a_clean_folder_exits_0_and_a_split_of_ones_own_is_looked_at(run, clinic, tmp_path):
    code, text, _ = run("data", "check", clinic)
    assert code == 0 and text.rstrip().endswith("clean") and "by patient" in text
    from oct_hf.data.oct import prepare

    dataset, _ = prepare("folder", clinic)
    hashes, patients = dataset["content_hash"][:], dataset["patient_id"][:]
    sides = ["test" if i == 0 else "train" for i in range(len(hashes))]
    write_split(tmp_path / "mine.csv", hashes, patients, ["x"] * len(hashes), sides)
    code, text, _ = run("data", "check", clinic, "--split", tmp_path / "mine.csv")
    assert code == 1 and f"patient {patients[0]}: on" in text
    write_split(tmp_path / "other.csv", ["abc"], ["p"], ["x"], ["train"])
    code, _, said = run("data", "check", clinic, "--split", tmp_path / "other.csv")
    assert code == 2 and "knows none of these 24 images" in said


def test_a_split_that_cannot_be_made_is_not_clean(run, clinic):
    for patient in ("D2", "D3", "D4", "D5"):
        shutil.rmtree(clinic / "DME" / patient)
    code, text, _ = run("data", "check", clinic)
    assert code == 1 and "can't be made. class DME has 2 patient(s)" in text


def test_what_cannot_be_read_exits_2_in_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", tmp_path / "gone.zip", "octld"):
        code, _, said = run("data", "check", given)
        assert code == 2 and len(said.strip().splitlines()) == 1, given


def test_the_list_names_every_set_and_how_to_get_it(run):
    code, text, _ = run("data", "list")
    assert code == 0 and all(name in text for name in ("oct2017", "octmnist", "srinivasan2014"))
    told = json.loads(run("data", "list", "--json")[1])
    assert {fact["name"]: fact["downloads"] for fact in told}["neh_ut_2021"] is False


def test_prepare_counts_and_names_what_was_left_out(run, clinic):
    (clinic / "DME" / "D0" / "0.png").write_bytes(b"")
    code, _, said = run("data", "prepare", clinic)
    assert code == 2 and "DME/D0/0.png" in said
    code, text, said = run("data", "prepare", clinic, "--skip-bad")
    assert code == 0 and "23 B-scans of 12 patients" in text and "left out: DME/D0/0.png (is empty" in said
    told = json.loads(run("data", "prepare", clinic, "--skip-bad", "--json")[1])
    assert told["classes"] == {"DME": 11, "NORMAL": 12} and len(told["skipped"]) == 1


class Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.cells, self.images, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_what_was_counted_and_needs_no_network(run, published, tmp_path):
    out = tmp_path / "page.html"
    code, _, _ = run("data", "show", "oct2017", "--data", published, "validation=0.3", "--out", out)
    text = out.read_text()
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    assert code == 0 and "✗ Not clean: 1 patient(s) on two sides" in words and "✓ Clean" in words
    assert "25 B-scans of 24 patients" in words
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in page.images)
    assert len(page.images) >= 4 * 5 + 3 * 6 + 2
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.findall(r'(?:src|href)="(?!data:|https://data\.mendeley\.com)', text)
    assert list(out.parent.glob("*.partial")) == []
    again = tmp_path / "again.html"
    run("data", "show", "oct2017", "--data", published, "validation=0.3", "--out", again)
    assert again.read_text() == text


def test_names_of_files_are_escaped_and_a_private_set_says_that_it_stays_home(run, clinic, tmp_path):
    (clinic / "DME" / "D0" / "0.png").rename(clinic / "DME" / "D0" / "<script>alert(1)<&.png")
    for file in (clinic / "DME").rglob("*.png"):
        if "script" not in file.name and file.parent.name != "D1":
            file.unlink()
    code, _, _ = run("data", "show", clinic, "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert code == 0 and "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "Keep it where the data may be" in text


@pytest.mark.parametrize("out", ["page.txt", "gone/page.html"])
def test_a_page_that_cannot_be_written_is_refused_before_any_work(run, clinic, tmp_path, out):
    code, _, said = run("data", "show", clinic, "--out", tmp_path / out)
    assert code == 2 and len(said.strip().splitlines()) == 1
