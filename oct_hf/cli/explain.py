"""`oct-hf explain`: B-scans in, pictures of where the classifier looks out."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, check_place
from oct_hf.cli.printing import print_json, print_table, say, score, tell


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files, a device's files, and folders of them.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A run, a model folder or a Hub id.")],
    method: Annotated[
        str | None, typer.Option(help="Such as integrated_gradients; what the model's own measurement found best.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Explain this label in every B-scan instead of the most probable one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explanations"),
    as_json: AsJson = False,
) -> None:
    """Show what in a B-scan speaks for the answer: a picture each, B-scan beside heat map.

    Heat says what the network goes by, not what is diseased. How far a method can be believed is
    measured on B-scans with known lesions; see the model's card.

    Example: oct-hf explain scans/ --model runs/demo --out explanations
    """
    check_place(out)
    from oct_hf.inference.explained import explain_files

    rows, chosen, why = explain_files(images, model, out, method, label)
    failed = sum(bool(row["error"]) for row in rows)
    if as_json:
        print_json(rows)
    else:
        cells = [
            (
                row["file"],
                row["error"] or row["label"],
                score(row["probability"]) if not row["error"] else "",
                row["picture"] or "",
            )
            for row in rows
        ]
        print_table("explanations", ("file", "label", "probability", "picture"), cells)
        tell("For research, not for diagnosis.")
    say(f"{len(rows) - failed} pictures by {chosen} ({why}): {out}")
    if failed:
        say(f"{failed} file(s) couldn't be read; see the column {'error' if as_json else 'label'}")
    if failed == len(rows):
        raise typer.Exit(2)
