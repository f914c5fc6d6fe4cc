"""`oct-hf ensemble`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, Data, check_place, overrides_of, prepare_for_other_hubs
from oct_hf.cli.printing import print_json, print_result, print_table, score, tell
from oct_hf.errors import OCTError


def ensemble(
    members: Annotated[list[str], typer.Argument(metavar="RUN RUN... [KEY=VALUE]...")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/ensemble where not given.")] = None,
    data: Data = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Average trained models into one network, calibrated and measured anew.

    Members are runs, model folders, a run's snapshots (train.snapshots=3) or Hub repositories; data and split are
    those of the first. None may have learned from what that split holds out.

    Example: oct-hf ensemble runs/seed-0 runs/seed-1 runs/roct_net --out runs/mean
    """
    prepare_for_other_hubs()
    names = [text for text in members if "=" not in text]
    if len(names) < 2:
        raise OCTError("an ensemble has two members or more")
    folder = out or Path("runs") / "ensemble"
    check_place(folder)

    from oct_hf.runs.ensemble import ensemble_recipe
    from oct_hf.runs.run import finetune

    recipe = ensemble_recipe(names, folder.name, overrides_of([text for text in members if "=" in text], data))
    run = finetune(recipe, folder, overwrite=overwrite)
    if as_json:
        print_json(run)
        return
    title, unit = f"{run['name']} on the test side", run["data"]["grouped_by"]
    print_result(run["results"]["test"], title, unit, run["intervals"], run["calibration"]["after"]["test"])
    rows = [(one["name"], one["architecture"], score(one["balanced_accuracy"])) for one in run["ensemble"]["members"]]
    print_table("members on the same test side", ("member", "network", "balanced accuracy"), rows)
    tell(f"{folder / 'model'}  the repository: weights, card, predictions, split")
