import json
import shutil

import pytest

from oct_hf import evaluate_model
from oct_hf.errors import DataError, ModelError
from oct_hf.evaluation.predictions import Predictions
from oct_hf.hub.download import download
from oct_hf.hub.verify import verify
from oct_hf.training.recipe import DataRecipe


@pytest.fixture
def model(finished_run, tmp_path):
    return shutil.copytree(finished_run / "model", tmp_path / "model")


def test_other_data_with_finer_labels_are_measured(finished_run, clinic, tmp_path):
    found = evaluate_model(finished_run, DataRecipe(name="folder", path=str(clinic)), tmp_path / "p.parquet")
    assert found["results"]["n"] == 24 and found["results"]["groups"] == 12
    assert found["results"]["per_class"]["CNV"]["recall"] is None
    assert found["intervals"]["per_class"]["CNV"]["recall"] == {"why": "no positive case"}
    assert Predictions.read(tmp_path / "p.parquet").measure() == found["results"]


def test_what_was_recorded_is_on_the_card_verified_and_replaced_by_a_second_time(model, clinic):
    data = DataRecipe(name="folder", path=str(clinic), title="Clinic B")
    before = (model / "README.md").read_text()
    for _ in range(2):
        evaluate_model(model, data, record=True)
    run = json.loads((model / "run.json").read_text())
    assert [one["file"] for one in run["external"]] == ["external/clinic-b.parquet"]
    card = (model / "README.md").read_text()
    assert "## On other data: Clinic B" in card and "## On other data" not in before
    assert str(clinic) not in card + json.dumps(run)
    assert [fault for check in verify(download(str(model))) for fault in check.faults] == []
    assert sorted(p.name for p in model.parent.iterdir()) == ["clinic", "model"]


def test_recorded_results_that_their_predictions_do_not_give_are_named(model, clinic):
    evaluate_model(model, DataRecipe(name="folder", path=str(clinic), title="Clinic B"), record=True)
    run = json.loads((model / "run.json").read_text())
    run["external"][0]["results"]["accuracy"] = 0.99
    (model / "run.json").write_text(json.dumps(run))
    faults = [fault for check in verify(download(str(model))) for fault in check.faults]
    assert any("external.0.results.accuracy is 0.99" in fault for fault in faults)
    run["external"][0]["file"] = "../run.parquet"
    (model / "run.json").write_text(json.dumps(run))
    faults = [fault for check in verify(download(str(model))) for fault in check.faults]
    assert any("external predictions lie in external/NAME.parquet" in fault for fault in faults)


def test_nothing_is_recorded_where_nothing_of_this_package_lies(tmp_path, clinic, model):
    (model / "run.json").unlink()
    with pytest.raises(ModelError, match="only a run or a model folder"):
        evaluate_model(model, DataRecipe(name="folder", path=str(clinic)), record=True)
    (model / "predictions.parquet").unlink()
    with pytest.raises(DataError, match=r"no predictions.parquet in it; give --data"):
        evaluate_model(model)
