"""`oct-hf predict`: files in, a table out."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.printing import print_table, say, score


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, a device's files, and folders of them.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A run, a model folder or a Hub id.")],
    out: Annotated[Path | None, typer.Option(help="Write a .csv, .parquet or .json file instead of a table.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    en_face: Annotated[
        Path | None,
        typer.Option(help="A folder for a picture an eye: which B-scans drove the answer."),
    ] = None,
    always: Annotated[
        bool, typer.Option("--always-answer", help="Name a label for every picture, also where the model is unsure.")
    ] = False,
    rule: Annotated[
        str | None, typer.Option(help="How the B-scans of an eye make one answer: mean, maximum or noisy-or.")
    ] = None,
) -> None:
    """Classify B-scans: one row a file, with a probability for each label.

    The column `answer` has the label, "unsure: DME or CNV" where the model can't rule out others,
    or "not an OCT B-scan"; the model's run measured when to say so. Of a model of signs it has the
    disease that they stand for, and the signs: "CNV: MNV, SRF".

    Of a device's file (DICOM, Heidelberg, Topcon, Zeiss, Optovue, Bioptigen) one row a B-scan and
    one an eye. They are joined by the rule that the model's run found best on its validation eyes,
    or by mean where it had none; --rule takes another.

    Example: oct-hf predict scans/ --model runs/demo --out answers.csv
    """
    from oct_hf.inference import table

    if out is not None:
        table.check_format(out)
    from dataclasses import replace

    from tqdm import tqdm

    from oct_hf.data.volumes import is_volume
    from oct_hf.errors import DataError, OCTError
    from oct_hf.evaluation.aggregation import RULES
    from oct_hf.inference.en_face import mark
    from oct_hf.inference.eyes import answer_eyes
    from oct_hf.inference.predictor import Predictor, find_images, quiet_transformers
    from oct_hf.inference.recorded import recorded_gate, recorded_rule
    from oct_hf.model.folder import model_folder

    if rule is not None and rule not in RULES:
        raise OCTError(f"--rule: found {rule}, expected {', '.join(RULES)}")
    quiet_transformers()
    files = find_images(images)
    devices = [file for file in files if is_volume(file)]
    pictures = [file for file in files if not is_volume(file)]
    folder = model_folder(model)
    predictor = Predictor(folder, batch_size=batch_size)
    gate = recorded_gate(folder, predictor.labels)
    if always:  # signs keep their thresholds
        gate = replace(gate, likeness=None) if gate and predictor.several else None
    predictor.gate = gate
    chosen, chosen_on = recorded_rule(folder)
    bar = tqdm(total=len(files), desc="predicting", unit="file", disable=None, leave=False)
    rows, eyes = [], []
    for answer in predictor.predict(pictures):
        rows.append(table.row(answer, predictor.labels))
        bar.update()
    for file in devices:
        try:
            for answer in answer_eyes(predictor, file, rule or chosen):
                eyes.append(answer.without_pixels())
                if en_face is not None:
                    en_face.mkdir(parents=True, exist_ok=True)
                    mark(answer).save(en_face / f"{len(eyes):04d}.png")
                rows += table.eye_rows(answer)
                del answer  # or its pixels would stay beside those of the next
        except DataError as error:
            rows.append({"file": str(file), "error": str(error).removeprefix(f"{file}: ")})
        bar.update()
    bar.close()
    failed = sum(bool(row.get("error")) for row in rows)
    if out is None:
        shown = [row for row in rows if row.get("level") is None]
        if shown:
            _print_predictions(shown, predictor.labels)
        if eyes:
            _print_eyes(eyes)
    else:
        table.write(rows, table.columns(predictor.labels, bool(devices)), out)
        say(f"{len(files) - failed} of {len(files)} files classified: {out}")
    if eyes and rule is None:
        why = f"best on the model's {chosen_on} validation eyes" if chosen_on else "the model's run chose none"
        say(f"B-scans of an eye are joined by {chosen}: {why}; --rule takes another")
    if en_face is not None:
        say(f"{len(eyes)} pictures, numbered as the eyes in the table: {en_face}" if eyes else "no eye to picture")
    for file, warning in dict.fromkeys((answer.file, w) for answer in eyes for w in answer.volume.warnings):
        say(f"{file}: {warning}")
    if failed:
        say(f"{failed} file(s) couldn't be read; see the column error")
    if failed == len(files):
        raise typer.Exit(2)


def _print_predictions(rows: list[dict], labels: tuple[str, ...]) -> None:
    table = [
        (
            row["file"],
            row["error"] or row["answer"],
            *(score(row[f"p_{name}"]) if not row["error"] else "" for name in labels),
        )
        for row in rows
    ]
    print_table("predictions", ("file", "answer", *labels), table)


def _print_eyes(eyes: list) -> None:
    table = [
        (
            answer.file,
            answer.volume.laterality or "unknown",
            str(len(answer.bscans)),
            answer.predicted,
            *(score(float(value)) for value in answer.probabilities),
            ", ".join(map(str, answer.driving)),
        )
        for answer in eyes
    ]
    columns = ("file", "eye", "B-scans", "predicted", *eyes[0].labels, "shown most in")
    print_table(f"eyes, B-scans joined by {eyes[0].rule}; B-scans are counted from 0", columns, table)
    print("For research, not for diagnosis.")
