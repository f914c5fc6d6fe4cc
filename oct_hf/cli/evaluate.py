"""`oct-hf evaluate` and `oct-hf compare`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, Data, check_file_place, overrides_of, prepare_for_other_hubs
from oct_hf.cli.printing import print_disease, print_json, print_result, print_signs, print_table, say, score, tell
from oct_hf.errors import OCTError


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[data.KEY=VALUE]...")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Write the predictions to this .parquet file.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put what --data shows into the model's folder and on its card.")
    ] = False,
    prevalence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Predictive values where the disease is so frequent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled images, or again from its own predictions.

    Example: oct-hf evaluate runs/demo --data clinic/ data.csv=patients.csv --record

    oct-hf evaluate runs/demo --prevalence 0.02
    """
    check_file_place(out)
    from oct_hf.training.recipe_file import load_recipe

    given = None
    if data is not None or overrides:
        given = load_recipe("folder", ["data.name=folder", *overrides_of(overrides, data)]).data
    elif record:
        raise OCTError("--record writes what other data show: give --data")

    from oct_hf.runs.other_data import evaluate_model

    if prevalence is not None and given is not None:
        raise OCTError("--prevalence works with the thresholds of the model's own predictions: leave out --data")
    found = evaluate_model(model, given, out, record)
    if "signs" in found:
        _print_signs(model, found, data, as_json)
        return
    points = _predictive_values(found, prevalence) if prevalence is not None else []
    if as_json:
        shown = {"at_prevalence": {"prevalence": prevalence, "points": points}} if points else {}
        print_json(found | shown)
        return
    title = f"{model} on {data or 'its own test predictions'}"
    print_result(found["results"], title, spans=found["intervals"], calibration=found["calibration"])
    if points:
        rows = [(*row[:2], *map(score, row[2:])) for row in points]
        columns = ("question", "target in validation", "sensitivity", "specificity", "PPV", "NPV")
        print_table(f"where {prevalence:g} of the eyes have it", columns, rows)
    if given is not None and found["shift"]:
        _print_shift(found)
    if record:
        say(f"recorded in {model}: its card shows {found['title']!r} under a heading of its own")


def compare(
    models: Annotated[list[str], typer.Argument(help="Two or more runs, model folders or Hub ids; the first leads.")],
    figure: Annotated[Path | None, typer.Option(help="Draw the differences into this .png file.")] = None,
    permutations: Annotated[int, typer.Option(min=100, help="Of each test.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Compare models on the test images that they share, patient by patient.

    Differences come with 95 % intervals over patients and permutation tests in which the
    answers for whole patients are swapped, corrected for the number of models (Holm).

    Example: oct-hf compare runs/demo runs/other you/third
    """
    prepare_for_other_hubs()
    from oct_hf.evaluation.comparison import compare_all
    from oct_hf.evaluation.oct_metrics import short_name
    from oct_hf.evaluation.predictions import Predictions
    from oct_hf.hub.download import download

    if len(set(models)) < len(models):
        raise OCTError("a model is named twice")
    if figure is not None and figure.suffix != ".png":
        raise OCTError(f"{figure}: the figure is a .png")
    check_file_place(figure)
    named = {name: Predictions.read(download(name).folder / "predictions.parquet") for name in models}
    found = compare_all(named, permutations)
    if figure is not None:
        from oct_hf.evaluation.report import can_draw, comparison_figure

        if not can_draw():
            raise OCTError('the figure needs matplotlib: pip install "oct-hf[figures]"')
        comparison_figure(found, figure)
    if as_json:
        print_json(found)
        return
    for name, one in found["runs"].items():
        rows = []
        for metric, row in one["metrics"].items():
            if "why" in row:
                rows.append((short_name(metric), *[f"n/a: {row['why']}", *[""] * 5]))
                continue
            span = "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
            values = (score(row["first"]), score(row["second"]), f"{row['difference']:+.3f}", span)
            rows.append((short_name(metric), *values, f"{row['p']:.4f}", f"{row['p_holm']:.4f}"))
        columns = ("test side", "first", "second", "second - first", "95 % interval", "p", "p, Holm")
        title = f"first: {found['first']}, second: {name}; {one['rows']} B-scans of {one['patients']} patients"
        print_table(title, columns, rows)
        for count, whose in ((one["only_first"], found["first"]), (one["only_second"], name)):
            if count:
                say(f"{count} test B-scans are in {whose} alone and were left out")


def _print_signs(model: str, found: dict, data: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_signs(found["signs"], f"{model} on {data or 'its own test predictions'}")
    if "disease" in found:
        print_disease(found)


def _predictive_values(found: dict, prevalence: float) -> list[tuple]:
    from oct_hf.evaluation.operating_points import at_prevalence
    from oct_hf.hub.of_labels import operating_rows

    rows = []
    for name, target, point in operating_rows(found["operating_points"]):
        pair = point["test"]["sensitivity"], point["test"]["specificity"]
        values = {"ppv": None, "npv": None} if None in pair else at_prevalence(*pair, prevalence)
        rows.append((name, target, *pair, values["ppv"], values["npv"]))
    return rows


def _print_shift(found: dict) -> None:
    rows = [
        (name, f"{shift['home'][1]:.2f}", f"{shift['other'][1]:.2f}", score(shift["ks"]))
        for name, shift in ((key, found["shift"][key]) for key in ("intensity", "quality"))
        if shift
    ]
    print_table("how these B-scans differ", ("median", "model's test side", "here", "distance"), rows)
    if found["refused"] is not None:
        tell(f"refused as no B-scan: {found['refused']:.1%}")
