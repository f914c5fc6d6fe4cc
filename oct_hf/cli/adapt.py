"""`oct-hf adapt`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, check_place, prepare_for_other_hubs
from oct_hf.cli.printing import print_json, print_table, say, tell


def adapt(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Folder or archive with the device's B-scans.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    prior: Annotated[int, typer.Option(min=0, help="B-scans that the trained statistics count for.")] = 16,
    most: Annotated[int, typer.Option(min=16, help="B-scans to take, drawn where there are more.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn, and of the batches.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Set a model to another device, by B-scans without labels.

    Only what its batch normalisation goes by changes. Give B-scans of many eyes as they come, with disease and
    without; then measure model and adapted model on some with labels, since nothing else tells whether it helped.

    Example: oct-hf adapt runs/clinic --data new_device/ --out runs/adapted && oct-hf evaluate runs/adapted
    --data labelled/
    """
    prepare_for_other_hubs()
    check_place(out)
    from oct_hf.runs.adapted import adapt_model

    facts = adapt_model(model, data, out, prior, most, seed)
    if as_json:
        print_json(facts)
        return
    rows = [(label, str(facts["before"][label]), str(facts["after"][label])) for label in facts["before"]]
    title = f"{facts['bscans']} B-scans, {facts['changed']} of them answered otherwise now"
    print_table(title, ("most probable label", "before", "after"), rows)
    if facts["unreadable"]:
        tell(f"{facts['unreadable']} file(s) couldn't be read and were left out")
    say(f"{out}: neither calibrated nor measured: oct-hf evaluate {out} --data LABELLED")
