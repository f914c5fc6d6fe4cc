"""`oct-hf export`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, check_place, prepare_for_other_hubs
from oct_hf.cli.printing import print_json, say, tell


def export(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, onnx-int8, openvino-int8, cascade or torch-export.")],
    out: Annotated[
        Path | None, typer.Option(help="A folder of your own; else the model's, and the file is published with it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Where the model's data lie now; int8 and a cascade need them.")
    ] = None,
    small: Annotated[
        str | None, typer.Option(help="For a cascade: the run of a small model that learned this one's answers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for another runtime: gray pixels in, calibrated probabilities out.

    int8 is calibrated on B-scans of the training side and measured on the held-out ones; it is refused
    where balanced accuracy falls by more than 0.005 or the calibration error rises by more than 0.01.

    A cascade adds a small network, which answers what it is sure of. At least 99.5 % of the answers
    must be the model's own, and balanced accuracy may fall by 0.005.

    Example: oct-hf export runs/demo --to openvino-int8
    """
    check_place(out)
    prepare_for_other_hubs()
    from oct_hf.evaluation.stand_in import in_words
    from oct_hf.runs.fast_export import export_model
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    done = export_model(model, to, out, data, small)
    if as_json:
        print_json({"files": [*map(str, done.files)], "report": done.report})
        return
    for path in done.files:
        tell(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if done.report:
        say(in_words(done.report))
