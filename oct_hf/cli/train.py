"""`oct-hf finetune`, on one split or on folds."""

import dataclasses
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
    prepare_for_other_hubs,
)
from oct_hf.cli.printing import (
    print_disease,
    print_joined,
    print_json,
    print_result,
    print_signs,
    print_table,
    say,
    score,
    tell,
)
from oct_hf.errors import OCTError


def finetune(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (demo, neh_2018, oct2017, folder) or a .yaml file.", autocompletion=complete_recipe
        ),
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    again: Annotated[
        str | None, typer.Option("--rerun", metavar="REPO", help="Train a published model again and compare.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME where not given.")] = None,
    skip_bad: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate: train once for each fold.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="A,B,…", help="With --folds: once for each of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune, measure and write a model repository.

    Examples: oct-hf finetune oct2017 --data OCT2017/ train.epochs=8

    oct-hf finetune octdl --data OCTDL/ --folds 5 --seeds 0,1,2

    oct-hf finetune --rerun you/oct-model --data OCT2017/
    """
    given = overrides_of(overrides, data, skip_bad)
    if again and recipe:
        given.insert(0, recipe)  # it stands where the recipe would
    if again and folds:
        raise OCTError("--rerun trains the published split again: leave out --folds")
    if seeds and not folds:
        raise OCTError("--seeds belongs to --folds; the seed of a single run is train.seed=N")
    difference = None
    prepare_for_other_hubs()
    if again:
        from oct_hf.hub.download import download
        from oct_hf.runs.again import rerun, rerun_recipe

        published = download(again)
        chosen = rerun_recipe(published, given)
        folder = out or Path("runs") / f"{chosen.name}-again"
    elif recipe is None:
        raise OCTError("which recipe? demo, neh_2018, oct2017, folder, a .yaml file, or --rerun REPO")
    else:
        from oct_hf.training.recipe_file import load_recipe

        chosen = load_recipe(recipe, given)
        folder = out or Path("runs") / (f"{chosen.name}-folds" if folds else chosen.name)

    check_place(folder)
    from oct_hf.runs.run import finetune as train
    from oct_hf.training import processes

    if folds:
        _cross_validate(chosen, folder, folds, seeds, overwrite, as_json)
        return
    was_done = not overwrite and (folder / "model").is_dir()
    with exit_when_stopped():
        if again:
            run, difference = rerun(published, chosen, folder, overwrite)
        else:
            run = train(chosen, folder, overwrite=overwrite)
    if not processes.is_main():
        return
    if as_json:
        print_json(run if difference is None else {"run": run, "difference": dataclasses.asdict(difference)})
        raise typer.Exit(0 if difference is None or difference.agrees else 1)
    if was_done:
        say(f"{folder} was already finished; --overwrite trains it again")
    if "signs" in run:
        print_signs(run["signs"]["signs"], f"{run['name']} on the test side")
        print_disease(run["signs"])
    else:
        unit = run["data"]["grouped_by"]
        calibration = run["calibration"]["after"]["test"]
        print_result(run["results"]["test"], f"{run['name']} on the test side", unit, run["intervals"], calibration)
        print_joined(run["per_eye"], "eye")
        print_joined(run["per_patient"], "patient")
    if run["data"]["left_out"]:
        say(f"left out: {run['data']['left_out']} files that can't be used or repeat others")
    _print_places(folder)
    if again and difference is not None:
        _print_difference(difference, again)
        raise typer.Exit(0 if difference.agrees else 1)


def _cross_validate(recipe, folder: Path, folds: int, seeds: str | None, overwrite: bool, as_json: bool) -> None:
    from oct_hf.runs.folds import POOLED, SCORES, cross_validate
    from oct_hf.training import processes

    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else []
    except ValueError:
        raise OCTError(f"--seeds {seeds}: whole numbers with commas between, such as 0,1,2") from None
    with exit_when_stopped():
        found = cross_validate(recipe, folder, folds, numbers, overwrite)
    if not processes.is_main():
        return
    if as_json:
        print_json(found)
        return
    seed, first = next(iter(found["by_seed"].items()))
    print_result(
        first["results"],
        f"{found['name']} out of {folds} folds" + (f", seed {seed}" if numbers else ""),
        first["data"]["grouped_by"],
        first["intervals"],
        first["calibration"],
    )
    print_joined(first["per_eye"], "eye")
    print_joined(first["per_patient"], "patient")
    columns = ("test side", *(f"fold {row['fold']}" for row in first["by_fold"]), "mean", "sd")
    _print_spread("by fold", columns, first["spread"], SCORES)
    if numbers:
        columns = ("pooled", *(f"seed {seed}" for seed in found["seeds"]), "mean", "sd")
        _print_spread("by seed", columns, found["over_seeds"], SCORES)
    tell(f"{folder / POOLED}  every B-scan by the network that never saw its patient")
    tell(f"{folder / 'folds.json'}  all of it; each fold's run lies beside it")


def _print_spread(title: str, columns: tuple, spread: dict, names: tuple) -> None:
    from oct_hf.evaluation.oct_metrics import short_name

    rows = [
        (short_name(name), *map(score, (*spread[name]["values"], spread[name]["mean"], spread[name]["sd"])))
        for name in names
    ]
    print_table(title, columns, rows)


def _print_difference(difference, published: str) -> None:
    from oct_hf.evaluation.oct_metrics import short_name

    rows = [
        (
            short_name(name),
            score(then),
            score(now),
            f"{span[0]:.3f}–{span[1]:.3f}" if span else "",
        )
        for name, then, now, span in difference.metrics
    ]
    columns = ("test side", "published", "again", "published 95 % interval")
    print_table(f"{published}, trained again", columns, rows)
    if difference.identical:
        tell("the weights are the same to the last bit")
        return
    tell(f"the weights differ; test probabilities by at most {difference.furthest:.3f}")
    if difference.changed:
        changes = (f"{name} {then} → {now}" for name, (then, now) in difference.changed.items())
        tell("changed since: " + ", ".join(changes))
    else:
        tell("nothing of machine and versions has changed")


def _print_places(folder: Path) -> None:
    for path, what in (
        (folder / "model", "the repository: weights, card, predictions, split"),
        (folder / "model" / "README.md", "the model card"),
        (folder / "run.json", "facts and all metrics"),
        (folder / "log", "epochs and augmentation"),
    ):
        if not path.exists():
            continue
        tell(f"{path!s:<{len(str(folder)) + 18}}{what}")
