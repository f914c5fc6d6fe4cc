"""`oct-hf app`: the page to drop B-scans on, here or as a Space."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import prepare_for_other_hubs, quiet_libraries
from oct_hf.cli.printing import say


def app(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen on; leave it unless you mean to open it.")] = "127.0.0.1",
    space: Annotated[
        Path | None, typer.Option(help="Write a Space with this page into a new folder instead; MODEL is its Hub id.")
    ] = None,
) -> None:
    """Open a page in the browser to drop B-scans and volumes on.

    It shows what predict says: calibrated probabilities, "unsure", "not an OCT B-scan", heat maps,
    the B-scans of a volume that drove its answer, and operating points at your own prevalence.
    Files are read on this machine, not kept, and sent to nobody. No authentication, no TLS.
    SIGTERM (exit code 143) or Ctrl-C (130) ends it.

    Example: oct-hf app runs/demo
    """
    quiet_libraries()
    if space is not None:
        from oct_hf.hub.app_space import write_space

        prepare_for_other_hubs()
        write_space(model, space)
        say(f"{space}: a Space with the page of {model}; hf upload YOU/NAME {space} . --repo-type space puts it up")
        return
    from oct_hf.inference.app import serve

    stopped = serve(model, port, host, lambda address: say(f"{model}: open {address} in a browser; Ctrl-C ends it"))
    raise typer.Exit(128 + stopped)
