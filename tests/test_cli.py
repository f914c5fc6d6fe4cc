import csv
import json
import subprocess
import sys

import pytest
from PIL import Image
from pyarrow import parquet

COLUMNS = ["file", "predicted", "answer", "p_CNV", "p_DME", "p_DRUSEN", "p_NORMAL", "error"]


def test_help_and_version_name_every_verb(run):
    code, text, _ = run("--help")
    assert code == 0 and all(verb in text for verb in ("finetune", "evaluate", "predict", "info"))
    assert run("--version")[1].startswith("oct-hf 0.")


def test_a_tables_columns_are_the_same_in_every_format(run, finished_run, clinic, tmp_path):
    rows = {}
    for kind in ("csv", "parquet", "json"):
        out = tmp_path / f"answers.{kind}"
        code, _, said = run("predict", clinic, "--model", finished_run, "--out", out)
        assert code == 0 and "24 of 24 files classified" in said
        if kind == "csv":
            rows[kind] = list(csv.DictReader(out.read_text().splitlines()))
        elif kind == "parquet":
            rows[kind] = parquet.read_table(out).to_pylist()
        else:
            rows[kind] = json.loads(out.read_text())
        assert list(rows[kind][0]) == COLUMNS and len(rows[kind]) == 24
    for one, other, third in zip(*rows.values(), strict=True):
        assert one["file"] == other["file"] == third["file"] and one["predicted"] == third["predicted"]
        assert float(one["p_DME"]) == pytest.approx(other["p_DME"], abs=1e-6) == pytest.approx(third["p_DME"])
        assert sum(float(one[name]) for name in COLUMNS[3:7]) == pytest.approx(1)


def test_an_unreadable_file_has_its_row_and_the_rest_go_on(run, finished_run, clinic, tmp_path):
    (clinic / "DME" / "D0" / "0.png").write_bytes(b"")
    out = tmp_path / "a.csv"
    code, _, said = run("predict", clinic, "--model", finished_run, "--out", out)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert code == 0 and "1 file(s) couldn't be read" in said
    bad = [row for row in rows if row["error"]]
    assert [row["error"] for row in bad] == ["is empty (0 bytes)"] and bad[0]["predicted"] == bad[0]["p_CNV"] == ""
    assert len(rows) == 24 and run("predict", clinic / "DME/D0/0.png", "--model", finished_run)[0] == 2


def test_real_bscans_of_every_shape_are_classified(run, finished_run, samples, tmp_path):
    out = tmp_path / "a.json"
    code, _, _ = run(
        "predict", samples / "srf_sample", *samples.glob("oct2017_sample/test"), "-m", finished_run, "--out", out
    )
    rows = json.loads(out.read_text())
    assert code == 0 and len(rows) == 52 and not any(row["error"] for row in rows)


def test_a_table_is_printed_where_no_file_is_asked_for(run, finished_run, clinic):
    code, text, _ = run("predict", clinic / "DME/D1", "--model", finished_run / "model")
    assert code == 0 and "1.png" in text and "answer" in text


def test_evaluate_prints_the_measured_numbers_again(run, finished_run, clinic):
    stored = json.loads((finished_run / "run.json").read_text())["results"]["test"]
    assert json.loads(run("evaluate", finished_run, "--json")[1])["results"] == stored
    code, text, _ = run("evaluate", finished_run, "--data", clinic)
    assert code == 0 and "24 B-scans, 12 patients" in text and "n/a" in text


def test_finetune_from_a_folder_of_ones_own(run, clinic, tmp_path):
    code, text, said = run(
        *("finetune", "folder", "--data", clinic, "--out", tmp_path / "mine", "--skip-bad", "model.weights=random"),
        *("base=test_efficientnet", "image_size=64", "epochs=2", "batch_size=8", "workers=0", "split.test=0.3"),
    )
    assert code == 0 and "epoch 2/2" in said and "balanced accuracy" in text
    assert (tmp_path / "mine/model/README.md").exists()


def test_info_lists_versions_devices_recipes_and_extras(run):
    facts = json.loads(run("info", "--json")[1])
    assert facts["versions"]["torch"] and facts["machine"]["device"] and "demo" in facts["recipes"]
    assert facts["extras"]["figures"] == "complete"
    assert "versions" in run("info")[1]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["finetune", "demmo"], 'did you mean "demo"'),
        (["finetune", "demo", "epoch=3"], 'did you mean "epochs"'),
        (["finetune", "folder"], "give --data"),
        (["finetune", "oct2017", "--data", "EMPTY"], "no usable image"),
        (["finetune", "folder", "--data", "EMPTY"], "no images in class folders"),
        (["predict", "EMPTY", "--model", "RUN"], "no image in this folder"),
        (["predict", "gone.png", "--model", "RUN"], "no such file"),
        (["predict", "EMPTY", "--model", "EMPTY"], "no image in this folder"),
        (["predict", "RUN/model/examples", "--model", "EMPTY"], "no config.json"),
        (["predict", "RUN/model/examples", "--model", "nobody/nothing"], "no model that can be loaded"),
        (["predict", "RUN/model/examples", "--model", "RUN", "--out", "x.xlsx"], "a table ends in .csv"),
        (["predict", "RUN/model/examples", "--model", "RUN", "--out", "gone/x.csv"], "no folder gone"),
        (["evaluate", "EMPTY"], "no predictions.parquet"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(run, finished_run, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = [a.replace("EMPTY", str(tmp_path / "empty")).replace("RUN", str(finished_run)) for a in arguments]
    code, _, said = run(*given)
    assert code == 2 and text in said and said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_file_names_with_spaces_and_letters_of_any_alphabet(run, finished_run, bscan, tmp_path):
    place = tmp_path / "Ærøskøbing Klinik"
    place.mkdir()
    Image.fromarray(bscan).save(place / "眼底 [red] 1.png")
    code, _, _ = run("predict", place, "--model", finished_run, "--out", place / "a b.csv")
    assert code == 0 and "[red] 1.png" in (place / "a b.csv").read_text()
    assert run("predict", place, "--model", finished_run)[0] == 0


def test_import_and_help_load_no_heavy_library():
    heavy = ("torch", "datasets", "transformers", "timm", "albumentations", "sklearn", "numpy")
    code = f"import sys; import oct_hf; bad = [m for m in {heavy!r} if m in sys.modules]; assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys; sys.argv = ['oct-hf', '--help']\n"
        "from oct_hf import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"bad = [m for m in {heavy!r} if m in sys.modules]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_predicting_imports_neither_datasets_nor_albumentations_nor_scikit_learn():
    code = (
        "import sys; import oct_hf; oct_hf.Predictor\n"
        "bad = {'datasets', 'albumentations', 'sklearn', 'evaluate'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_can_be_imported():
    import oct_hf

    assert all(getattr(oct_hf, name) is not None for name in oct_hf.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        oct_hf.nothing  # noqa: B018


def test_a_photograph_is_refused_and_a_doubtful_bscan_gets_every_label_that_is_left(run, finished_run, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (300, 200), (30, 140, 60)).save(pictures / "lawn.png")
    draw = finished_run / "model" / "examples" / "DME.png"
    (pictures / "scan.png").write_bytes(draw.read_bytes())
    code, _, _ = run("predict", pictures, "--model", finished_run, "--out", tmp_path / "a.csv")
    lawn, scan = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert code == 0 and lawn["answer"] == "not an OCT B-scan" and lawn["predicted"] == "" and float(lawn["p_DME"]) >= 0
    gate = json.loads((finished_run / "model" / "run.json").read_text())["gate"]
    left = [name for name in gate["labels"] if 1 - float(scan[f"p_{name}"]) <= (gate["conformal"]["threshold"] or 1)]
    assert len(left) > 1 and scan["answer"].startswith("unsure: ") and all(name in scan["answer"] for name in left)
    run("predict", pictures, "--model", finished_run, "--out", tmp_path / "b.csv", "--always-answer")
    rows = list(csv.DictReader((tmp_path / "b.csv").read_text().splitlines()))
    assert all(row["answer"] == row["predicted"] in gate["labels"] for row in rows)


def test_predictive_values_at_a_clinics_own_prevalence(run, finished_run):
    code, text, _ = run("evaluate", finished_run, "--prevalence", "0.1", "--json")
    found = json.loads(text)
    question, target, sensitivity, specificity, ppv, _ = found["at_prevalence"]["points"][0]
    expected = sensitivity * 0.1 + (1 - specificity) * 0.9
    assert code == 0 and (ppv is None if expected == 0 else ppv == pytest.approx(sensitivity * 0.1 / expected))
    assert (
        found["operating_points"]["diseases"][question][f"at_{target.split()[0]}"]["test"]["sensitivity"] == sensitivity
    )
    assert run("evaluate", finished_run, "--prevalence", "0.1", "--data", "x")[0] == 2
    assert "give --data" in run("evaluate", finished_run, "--record")[2]


def test_two_runs_are_compared_patient_by_patient_with_a_figure(run, finished_run, tmp_path):
    import shutil

    import numpy as np

    from oct_hf.evaluation.predictions import Predictions

    other = shutil.copytree(finished_run / "model", tmp_path / "other")
    mine = Predictions.read(other / "predictions.parquet")
    truth = np.eye(len(mine.names))[mine.indices()]
    mine.with_probabilities(0.9 * truth + 0.1 * mine.probabilities).write(other / "predictions.parquet")
    figure = tmp_path / "difference.png"
    code, text, _ = run("compare", finished_run, other, "--json", "--figure", figure, "--permutations", "200")
    found = json.loads(text)["runs"][str(other)]
    assert code == 0 and found["only_first"] == 0 and found["metrics"]["accuracy"]["second"] == 1.0
    assert found["metrics"]["accuracy"]["difference"] > 0 and found["metrics"]["log_loss"]["difference"] < 0
    with Image.open(figure) as picture:
        assert picture.width > 600
    code, text, _ = run("compare", finished_run, other)
    assert code == 0 and "balanced accuracy" in text and "p, Holm" in text
    assert run("compare", finished_run, finished_run)[0] == 2 and run("compare", finished_run)[0] == 2
