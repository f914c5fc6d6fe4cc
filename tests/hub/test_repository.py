import pytest

from oct_hf.errors import RunError
from oct_hf.hub.repository import check_allowed, write_examples


@pytest.mark.parametrize("name", ["training_args.bin.pkl", "model.pt", "code.py", "scan.jpeg", "notes"])
def test_only_listed_kinds_of_files_may_be_published(tmp_path, name):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").write_text("{}")
    check_allowed(tmp_path)
    (tmp_path / "inner" / name).write_bytes(b"x")
    with pytest.raises(RunError, match=f"inner/{name} may not be published"):
        check_allowed(tmp_path)


def test_a_link_out_of_the_folder_may_not_be_published(tmp_path):
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(RunError, match=r"config.json may not be published"):
        check_allowed(tmp_path)


def test_examples_are_phantoms_of_the_labels_that_have_one(tmp_path):
    assert write_examples(tmp_path, ["AMD", "VID", "NORMAL"]) == ["examples/AMD.png", "examples/NORMAL.png"]
