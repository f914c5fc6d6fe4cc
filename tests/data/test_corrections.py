import pytest

from oct_hf.data.corrections import LEAVE_OUT, correct_labels, describe_corrections, read_corrections
from oct_hf.data.oct import prepare
from oct_hf.errors import DataError

HEADER = "content_hash,label,given_label"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """24 phantoms, six a class."""
    cache = tmp_path_factory.mktemp("cache")
    return prepare("phantom", cache_dir=cache, patients=3, scans=2, height=96, width=96)[0]


@pytest.fixture
def write(tmp_path):
    def write(*lines, header=HEADER):
        path = tmp_path / "corrections.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return path

    return write


def image(dataset, row):
    return dataset["content_hash"][row], dataset.features["label"].names[dataset["label"][row]]


def test_labels_are_replaced_and_nothing_else(phantoms, write):
    (first, was), (second, other) = image(phantoms, 0), image(phantoms, 6)
    path = write(f"{first},DME,{was}", f"{second.upper()},{other},{other}")
    corrected, skipped = correct_labels(phantoms, [], path)
    assert corrected.features == phantoms.features and corrected.column_names == phantoms.column_names
    assert image(corrected, 0) == (first, "DME") and not skipped
    assert corrected["label"][1:] == phantoms["label"][1:]
    assert corrected["patient_id"][:] == phantoms["patient_id"][:]
    told = describe_corrections(path, corrected["content_hash"][:])
    assert (told["relabelled"], told["confirmed"], told["left_out"]) == (1, 1, 0)


@pytest.mark.parametrize("label", ["", LEAVE_OUT])
def test_an_image_can_be_left_out_and_is_listed(phantoms, write, label):
    value, was = image(phantoms, 3)
    corrected, skipped = correct_labels(phantoms, [{"file": "x", "reason": "y"}], write(f"{value},{label},{was}"))
    assert len(corrected) == len(phantoms) - 1 and value not in corrected["content_hash"][:]
    assert skipped[1] == {"file": phantoms["source"][3], "reason": "left out by corrections.csv"}
    assert corrected["image"][3].size == phantoms["image"][4].size


def test_what_a_spreadsheet_saves_is_read(phantoms, tmp_path):
    value, was = image(phantoms, 0)
    path = tmp_path / "saved.csv"
    path.write_bytes(f"\ufeffcontent_hash;label;given_label;note\r\n{value};DME;{was};a, b\r\n".encode())
    (read,) = read_corrections(path)
    assert (read.content_hash, read.label, read.given_label, read.note) == (value, "DME", was, "a, b")


def test_the_same_decision_twice_is_one(phantoms, write):
    value, was = image(phantoms, 0)
    assert len(read_corrections(write(f"{value},DME,{was}", f"{value},DME,{was}"))) == 1


def test_the_recorded_hash_is_of_what_is_published_not_of_the_remarks(phantoms, write):
    value, was = image(phantoms, 0)
    plain = describe_corrections(write(f"{value},DME,{was}"), [value])
    remarked = write(f"{value},DME,{was},a name", header=HEADER + ",reviewer")
    assert describe_corrections(remarked, [value]) == plain


@pytest.mark.parametrize(
    "line, said",
    [
        ("{hash},DMEE,{was}", 'line 2: label "DMEE" is unknown (did you mean "DME"?)'),
        ("{hash},DME,DRUSENS", 'line 2: label "DRUSENS" is unknown (did you mean "DRUSEN"?)'),
        ("{hash},CNV,DME", "outdated: 1 of its 1 corrections replace another label than the set now has (line 2: DME"),
        ("{hash},DME,{was}\n{hash},CNV,{was}", "lines 2 and 3: one image"),
        ("{hash},DME,", "line 2: no given_label"),
        (",DME,CNV", "line 2: no content_hash"),
        ("{hash}", "line 2: no given_label"),
        ("0123abc,DME,CNV", "1 of its 1 corrections name images that aren't in the set (line 2: 0123abc"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(phantoms, write, line, said):
    value, was = image(phantoms, 0)
    assert was == "CNV"
    with pytest.raises(DataError) as caught:
        correct_labels(phantoms, [], write(line.format(hash=value, was=was)))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_images_are_passed_over_where_bad_files_are(phantoms, write):
    value, was = image(phantoms, 0)
    path = write(f"{value},DME,{was}", "0123abc,DME,CNV")
    with pytest.raises(DataError, match="1 of its 2 corrections name images"):
        correct_labels(phantoms, [], path)
    corrected, _ = correct_labels(phantoms, [], path, skip_bad=True)
    assert image(corrected, 0) == (value, "DME")


def test_a_file_that_is_no_table_of_corrections_is_one_line(tmp_path, phantoms, write):
    picture = tmp_path / "picture.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    missing = write("x,y", header="hash,label")
    for path, said in (
        (tmp_path / "none.csv", "can't be read (No such file"),
        (tmp_path, "can't be read (Is a directory"),
        (picture, "can't be read (not a text in UTF-8"),
        (missing, 'no column "content_hash"'),
    ):
        with pytest.raises(DataError) as caught:
            read_corrections(path)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_that_a_person_left_out_whole_is_refused(phantoms, write):
    rows = [i for i, label in enumerate(phantoms["label"][:]) if label == 0]
    path = write(*(f"{image(phantoms, row)[0]},,CNV" for row in rows))
    with pytest.raises(DataError, match="no image of class CNV is left"):
        correct_labels(phantoms, [], path)
