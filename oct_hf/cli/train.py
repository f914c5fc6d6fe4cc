"""`oct-hf finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import Data, overrides_of, prepare_for_other_hubs
from oct_hf.cli.printing import print_result, print_table, say, score
from oct_hf.errors import OCTError


def finetune(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name (demo, neh_2018, oct2017, folder) or a .yaml file.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    data: Data = None,
    again: Annotated[
        str | None, typer.Option("--rerun", metavar="REPO", help="Train a published model again and compare.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME where not given.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without the files that can't be used.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """Fine-tune, measure and write a model repository.

    Examples: oct-hf finetune oct2017 --data OCT2017/ train.epochs=8

    oct-hf finetune --rerun you/oct-model --data OCT2017/
    """
    given = overrides_of(overrides, data, skip_bad)
    if again and recipe:
        given.insert(0, recipe)  # it stands where the recipe would
    if not again and not recipe:
        raise OCTError("which recipe? demo, neh_2018, oct2017, folder, a .yaml file, or --rerun REPO")
    difference = None
    prepare_for_other_hubs()
    if again:
        from oct_hf.hub.download import download
        from oct_hf.runs.again import rerun, rerun_recipe

        published = download(again)
        chosen = rerun_recipe(published, given)
        folder = out or Path("runs") / f"{chosen.name}-again"
    else:
        from oct_hf.training.recipe import load_recipe

        chosen = load_recipe(recipe, given)
        folder = out or Path("runs") / chosen.name

    from oct_hf.runs import run as runs

    was_done = not overwrite and (folder / "model").is_dir()
    try:
        if again:
            run, difference = rerun(published, chosen, folder, overwrite)
        else:
            run = runs.finetune(chosen, folder, overwrite=overwrite)
    except runs.Stopped as stopped:
        say(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    if was_done:
        say(f"{folder} was already finished; --overwrite trains it again")
    print_result(run["results"]["test"], f"{run['name']} on the test side", run["data"]["grouped_by"], run["intervals"])
    if run["data"]["left_out"]:
        say(f"left out: {run['data']['left_out']} files that can't be used or repeat others")
    _print_places(folder)
    if difference is not None:
        _print_difference(difference, again)
        raise typer.Exit(0 if difference.agrees else 1)


def _print_difference(difference, published: str) -> None:
    rows = [
        (
            name.replace("_", " "),
            score(then),
            score(now),
            f"{span[0]:.3f}–{span[1]:.3f}" if span else "",
        )
        for name, then, now, span in difference.metrics
    ]
    columns = ("test side", "published", "again", "published 95 % interval")
    print_table(f"{published}, trained again", columns, rows)
    if difference.identical:
        print("the weights are the same to the last bit")
        return
    print(f"the weights differ; test probabilities by at most {difference.furthest:.3f}")
    if difference.changed:
        changes = (f"{name} {then} → {now}" for name, (then, now) in difference.changed.items())
        print("changed since: " + ", ".join(changes))
    else:
        print("nothing of machine and versions has changed")


def _print_places(folder: Path) -> None:
    for path, what in (
        (folder / "model", "the repository: weights, card, predictions, split"),
        (folder / "model" / "README.md", "the model card"),
        (folder / "run.json", "facts and all metrics"),
        (folder / "log", "epochs and augmentation"),
    ):
        print(f"{path!s:<{len(str(folder)) + 18}}{what}")
