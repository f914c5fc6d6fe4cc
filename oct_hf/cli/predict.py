"""`oct-hf predict`: files in, a table out."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.printing import print_table, say, score


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A run, a model folder or a Hub id.")],
    out: Annotated[Path | None, typer.Option(help="Write a .csv, .parquet or .json file instead of a table.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
) -> None:
    """Classify B-scans: one row a file, with a probability for each label.

    Example: oct-hf predict scans/ --model runs/demo --out answers.csv
    """
    from oct_hf.inference import table

    if out is not None:
        table.check_format(out)
    from tqdm import tqdm

    from oct_hf.inference.predictor import Predictor, find_images, quiet_transformers
    from oct_hf.model.folder import model_folder

    quiet_transformers()
    files = find_images(images)
    predictor = Predictor(model_folder(model), batch_size=batch_size)
    work = tqdm(predictor.predict(files), total=len(files), desc="predicting", unit="image", disable=None, leave=False)
    rows = [table.row(answer, predictor.labels) for answer in work]
    failed = [row for row in rows if row["error"]]
    if out is None:
        _print_predictions(rows, predictor.labels)
    else:
        table.write(rows, table.columns(predictor.labels), out)
        say(f"{len(rows) - len(failed)} of {len(rows)} files classified: {out}")
    if failed:
        say(f"{len(failed)} file(s) couldn't be read; see the column error")
    if len(failed) == len(rows):
        raise typer.Exit(2)


def _print_predictions(rows: list[dict], labels: tuple[str, ...]) -> None:
    table = [
        (
            row["file"],
            row["error"] or row["predicted"],
            *(score(row[f"p_{name}"]) if not row["error"] else "" for name in labels),
        )
        for row in rows
    ]
    print_table("predictions", ("file", "predicted", *labels), table)
