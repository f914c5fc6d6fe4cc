"""`oct-hf predict`: files in, a table out."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import check_file_place, check_place, quiet_libraries
from oct_hf.cli.printing import print_json, print_table, say, score, tell
from oct_hf.errors import OCTError, did_you_mean


def _complete_backend(incomplete: str) -> list[str]:
    from oct_hf.inference.backends import CHOICES

    return list(CHOICES)


def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, device files, zips, tars, Parquet files with images, and folders."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A run, a model folder or a Hub id.")],
    out: Annotated[str | None, typer.Option(help="Write a .csv, .parquet or .json file instead of a table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where --out is there already.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a call of the network.")] = None,
    backend: Annotated[
        str,
        typer.Option(
            help="auto, torch, onnx, onnx-int8, openvino, openvino-bf16, openvino-int8 or cascade.",
            autocompletion=_complete_backend,
        ),
    ] = "auto",
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
    engine: Annotated[
        str, typer.Option(help="process: this one. ray: a Ray cluster (RAY_ADDRESS), from and to s3:// too.")
    ] = "process",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: processes at a time; a GPU or a machine each.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows as JSON; with --out, what came of it.")
    ] = False,
) -> None:
    """Classify B-scans: one row a file, with a probability for each label.

    The column `answer` has the label, "unsure: DME or CNV" where the model can't rule out others,
    or "not an OCT B-scan"; the model's run measured when to say so. Of a model of signs it has the
    disease that they stand for, and the signs: "CNV: MNV, SRF".

    Of a device's file (DICOM, Heidelberg, Topcon, Zeiss, Optovue, Bioptigen) one row a B-scan and
    one an eye. They are joined by the rule that the model's run found best on its validation eyes,
    or by mean where it had none; --rule takes another.

    With --out, stopped or killed, the same command goes on where it was.

    The backend is the fastest here of those whose probabilities are those of float32, measured once
    and remembered. int8, bfloat16 and a cascade answer a little otherwise and are taken only when named.

    With --engine ray, --out is a folder for Parquet parts, or a table; every machine must see it and
    the images under one path. Addresses that fsspec reads are taken too, also of Parquet files.

    Example: oct-hf predict scans/ --model runs/demo --out answers.csv
    """
    _check_engine(engine, workers, out, en_face)
    if engine == "ray":
        _predict_on_ray(images, model, out, batch_size, backend, always, rule, workers, overwrite, as_json)
        return
    from oct_hf.inference import table

    written = None if out is None else Path(out)
    if written is not None:
        table.check_format(written)
        check_file_place(written)
    check_place(en_face)
    from contextlib import nullcontext

    from tqdm import tqdm

    from oct_hf.evaluation.aggregation import RULES
    from oct_hf.inference.bulk import answer
    from oct_hf.inference.inputs import stream, survey
    from oct_hf.inference.predictor import Predictor
    from oct_hf.inference.recorded import recorded_gate, recorded_rule
    from oct_hf.inference.results import Journal
    from oct_hf.model.folder import model_folder

    if rule is not None and rule not in RULES:
        raise OCTError(f"--rule: found {rule}{did_you_mean(rule, RULES)}, expected {', '.join(RULES)}")
    quiet_libraries()
    found, folder = survey(images), model_folder(model)
    predictor = Predictor(folder, batch_size=batch_size, backend=backend, images=found.count)
    predictor.gate = recorded_gate(folder, predictor.labels, always)
    chosen, chosen_on = recorded_rule(folder)
    facts = {
        "weights": predictor.network.sha256,
        "labels": predictor.labels,
        "backend": predictor.network.backend,
        "rule": rule or chosen,
        "gate": predictor.gate and predictor.gate.to_dict(),
    }
    columns = table.columns(predictor.labels, found.devices)
    rows, eyes, warnings, failed, pictured = [], [], {}, 0, 0
    with nullcontext() if written is None else Journal(written, facts, overwrite) as journal:
        given = stream(images)
        if journal and journal.before:
            say(f"{journal.before} of {found.count} files were classified already; going on")
            given, pictured = (one for one in given if not journal.has(one.name)), journal.eyes
        done = journal.before if journal else 0
        bar = tqdm(total=found.count, initial=done, desc="predicting", unit="file", disable=None, leave=False)
        for one in answer(predictor, given, rule or chosen):
            for eye in one.eyes:
                pictured += 1
                warnings |= dict.fromkeys((one.name, warning) for warning in eye.volume.warnings)
                if en_face is not None:
                    _picture(eye, en_face, pictured)
            if journal:
                journal.add(one.name, one.rows)
            else:
                rows += one.rows
                eyes += [eye.without_pixels() for eye in one.eyes]
                failed += bool(one.rows[0].get("error"))
            bar.update()
            del one  # or its pixels would stay beside those of the next
        bar.close()
        if journal:
            failed = journal.failed
            journal.finish(columns)
    if as_json:
        facts = {"out": out, "files": found.count, "failed": failed, "backend": predictor.network.backend}
        print_json(facts if out else [{name: row.get(name) for name in columns} for row in rows])
    elif out is None:
        shown = [row for row in rows if row.get("level") is None]
        if shown:
            _print_predictions(shown, predictor.labels)
        if eyes:
            _print_eyes(eyes)
    else:
        say(f"{found.count - failed} of {found.count} files classified on {predictor.network.backend}: {out}")
    if pictured and rule is None:
        why = f"best on the model's {chosen_on} validation eyes" if chosen_on else "the model's run chose none"
        say(f"B-scans of an eye are joined by {chosen}: {why}; --rule takes another")
    if en_face is not None:
        say(f"{pictured} pictures, numbered as the eyes in the table: {en_face}" if pictured else "no eye to picture")
    for file, warning in warnings:
        say(f"{file}: {warning}")
    if failed:
        say(f"{failed} file(s) couldn't be read; see the column error")
    if failed == found.count:
        raise typer.Exit(2)


def _check_engine(engine: str, workers: int | None, out: str | None, en_face: Path | None) -> None:
    engines = ("process", "ray")
    if engine not in engines:
        raise OCTError(f"--engine: found {engine}{did_you_mean(engine, engines)}, expected {' or '.join(engines)}")
    if engine == "process" and workers:
        raise OCTError("--workers says how many processes of a cluster work at a time: --engine ray")
    if engine == "ray" and (out is None or en_face is not None):
        raise OCTError("--engine ray writes answers to --out FOLDER or a table; --en-face is drawn without it")


def _predict_on_ray(images, model, out, batch_size, backend, always, rule, workers, overwrite, as_json) -> None:
    from oct_hf.inference.on_ray import Options, predict_on_ray
    from oct_hf.model.folder import model_folder

    quiet_libraries()
    options = Options(batch_size, backend, always, rule)
    done = predict_on_ray(images, model_folder(model), out, options, workers, overwrite)
    if as_json:
        print_json({"out": out, "files": done.images, "failed": done.failed})
    if done.before:
        say(f"{done.before} of {done.images} files were classified already")
    if done.lost:
        say(f"{done.lost} time(s) a process was lost and its files given to another")
    say(f"{done.images - done.failed} of {done.images} files classified: {out}")
    if done.failed:
        say(f"{done.failed} file(s) couldn't be read; see the column error")
    if done.failed == done.images:
        raise typer.Exit(2)


def _picture(eye, folder: Path, number: int) -> None:
    from oct_hf.inference.en_face import mark

    folder.mkdir(parents=True, exist_ok=True)
    mark(eye).save(folder / f"{number:04d}.png")


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
    tell("For research, not for diagnosis.")
