"""`oct-hf tune`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import (
    AsJson,
    Data,
    Overrides,
    SkipBad,
    check_place,
    complete_recipe,
    exit_when_stopped,
    overrides_of,
)
from oct_hf.cli.printing import print_json, print_table, score, tell


def tune(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a .yaml file.", autocompletion=complete_recipe)],
    overrides: Overrides = None,
    data: Data = None,
    trials: Annotated[int, typer.Option(min=1, help="In all, those of an earlier call included.")] = 20,
    folds: Annotated[
        int, typer.Option(min=2, help="Of the patients off the test side; a trial is trained on each.")
    ] = 3,
    space: Annotated[Path | None, typer.Option(help="YAML of ranges; the recipe's search: where not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the proposals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The study's folder; runs/NAME-tune where not given.")] = None,
    engine: Annotated[
        str, typer.Option(help="process: trials one by one, here; ray: on a Ray cluster (RAY_ADDRESS).")
    ] = "process",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With ray: trials at a time; one a GPU or machine where not given.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Search a recipe's settings on patient-grouped folds; the test side stays unseen.

    A space is YAML: a recipe key and its range or its choices, such as
    train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true} or train.class_weights: \\[null, auto].
    A study that was stopped or killed goes on with the same command, with --engine ray or without.
    Every machine of a cluster must see the data and --out under the same path.

    Example: oct-hf tune octdl --data OCTDL/ --trials 30 && oct-hf finetune runs/octdl-tune/best.yaml
    """
    from oct_hf.training.recipe_file import load_recipe
    from oct_hf.training.search import read_space

    chosen = load_recipe(recipe, overrides_of(overrides, data, skip_bad))
    ranges = read_space(space) if space else None
    folder = out or Path("runs") / f"{chosen.name}-tune"

    check_place(folder)
    from oct_hf.runs.tune import BEST, TABLE
    from oct_hf.runs.tune import tune as search

    with exit_when_stopped():
        found = search(chosen, folder, trials, folds, ranges, seed, engine=engine, workers=workers)
    if as_json:
        print_json(found)
        return
    _print_study(found)
    if found["best"] is not None:
        tell(f"{folder / BEST}  the best recipe: oct-hf finetune it; only its test side says how good it is")
    tell(f"{folder / TABLE}  all trials")


def _print_study(found: dict, shown: int = 10) -> None:
    from oct_hf.runs.tune import shown_value

    best_first = sorted(found["trials"], key=lambda row: -(row["score"] or 0))[:shown]
    keys = list(found["space"])
    rows = [
        (
            str(row["number"]),
            score(row["score"]) if row["score"] is not None else row["state"],
            *(shown_value(row["params"][key]) for key in keys),
        )
        for row in best_first
    ]
    data = found["data"]
    title = f"{found['name']}: validation balanced accuracy, mean of {found['folds']} folds of {data['title']}"
    title += f" ({data['images']} B-scans, {data['patients']} patients)"
    print_table(title, ("trial", "score", *keys), rows)
