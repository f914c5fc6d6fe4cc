"""`oct-hf data list|prepare|check|show|labels`: the sets that are known, and what is in one."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import (
    AsJson,
    Data,
    Overrides,
    SkipBad,
    check_file_place,
    check_place,
    complete_recipe,
    exit_when_stopped,
    overrides_of,
)
from oct_hf.cli.printing import print_json, print_table, say, tell
from oct_hf.errors import OCTError, did_you_mean

app = typer.Typer(help="Public sets by name; what a data set holds, and whether it leaks.", no_args_is_help=True)
SHOWN = 10  # offenders of one split; all of them with --json

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_FOLDER",
        help="A public set, a recipe, a folder or an archive.",
        autocompletion=complete_recipe,
    ),
]


@app.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """The public sets that are known by name.

    Example: oct-hf data list
    """
    from oct_hf.data.catalog import CATALOG

    facts = [
        {
            "name": row.name,
            "title": row.title,
            "classes": list(row.labels),
            "images": row.images,
            "grouped_by": row.grouped_by if row.patients else None,
            "license": row.license,
            "homepage": row.homepage,
            "downloads": bool(row.files) and all(file.url for file in row.files),
            "layout": row.says,
            "citation": row.citation,
            "note": row.note,
        }
        for row in CATALOG.values()
    ]
    if as_json:
        print_json(facts)
        return
    rows = [
        (
            fact["name"],
            ", ".join(fact["classes"]),
            fact["grouped_by"] or "nothing",
            fact["license"] or "not stated",
            "by itself" if fact["downloads"] else "by hand",
        )
        for fact in facts
    ]
    print_table("public OCT sets", ("name", "classes", "told apart by", "licence", "download"), rows)
    tell("oct-hf data list --json has pages, citations and layouts; oct-hf data prepare NAME gets one or says how")


@app.command()
def prepare(
    name: Name,
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[
        str | None, typer.Option(help="Write Parquet shards there, a folder or s3://…, instead of into the cache.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read files.")] = None,
    engine: Annotated[str, typer.Option(help="With --out: processes, or ray (RAY_ADDRESS).")] = "processes",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Get a set (where its owner lets a program), read every file once, and keep it ready.

    With --out as Parquet shards of about 500 MB, for machines that share them: train on these
    with data.name=parquet data.path=OUT, or straight from them with data.stream=true as well.

    Example: oct-hf data prepare octdl
    """
    import time

    from oct_hf.runs.labelled import load_data
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    recipe = _recipe(name, overrides, data, skip_bad)
    began = time.monotonic()
    if out is not None:
        _prepare_shards(recipe.data, out, workers, engine, as_json)
        return
    if engine != "processes":
        raise OCTError("--engine writes shards: say where with --out")
    dataset, skipped = load_data(recipe.data, workers=workers)
    names = dataset.features["label"].names
    labels = dataset["label"][:]
    counts = {label: labels.count(number) for number, label in enumerate(names)}
    facts = {"images": len(dataset), "patients": len(set(dataset["patient_id"][:]) - {""}), "classes": counts}
    if as_json:
        print_json(facts | {"skipped": skipped})
        return
    print_table(recipe.data.title or name, ("class", "B-scans"), [(k, f"{v:,}") for k, v in counts.items()])
    tell(f"{facts['images']:,} B-scans of {facts['patients']:,} patients, ready in {time.monotonic() - began:.1f} s")
    _say_skipped(skipped)


def _prepare_shards(data, out: str, workers: int | None, engine: str, as_json: bool) -> None:
    from oct_hf.data.oct import builder_of
    from oct_hf.data.prepared import write_prepared
    from oct_hf.runs.labelled import builder_options

    facts = write_prepared(builder_of(data.name, data.path, **builder_options(data)), out, workers, engine)
    if as_json:
        print_json(facts)
        return
    print_table(data.title or data.name, ("class", "B-scans"), [(k, f"{v:,}") for k, v in facts["classes"].items()])
    tell(f"{facts['images']:,} B-scans in {len(facts['shards'])} shards: {out}")
    tell(f"train on them: oct-hf finetune parquet data.path={out}")
    _say_skipped(facts["skipped"])


@app.command()
def check(
    name: Name,
    overrides: Overrides = None,
    data: Data = None,
    split: Annotated[
        Path | None, typer.Option(help="A split.csv, or a run that has one, instead of the recipe's split.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """The leakage certificate; exits 1 where a patient or a near-duplicate stands on two sides.

    Looks at the published sides as they are and at the recipe's split. OCT2017's published
    sides share patients: they are named here, and finetune takes them out of training.

    Example: oct-hf data check oct2017 --data OCT2017.zip
    """
    if split is not None and not split.exists():  # before every file is read
        raise OCTError(f"{split}: no such split.csv or run")
    from oct_hf.runs.check import check as check_data
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    recipe = _recipe(name, overrides, data, skip_bad)
    checked = check_data(recipe, split)
    if as_json:
        print_json(checked.to_dict())
        raise typer.Exit(0 if checked.clean else 1)
    for one in checked.splits:
        _print_split(checked, one, recipe.data.grouped_by)
    for note in checked.notes:
        say(f"note: {note}")
    _say_skipped(checked.skipped)
    tell("clean" if checked.clean else "not clean")
    raise typer.Exit(0 if checked.clean else 1)


@app.command()
def show(
    name: Name,
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """One page to look at: samples with and without augmentation, counts, sizes, intensities, near-duplicates.

    It holds pictures of patients and needs no network: keep it where the data may be.

    Example: oct-hf data show oct2017 --data OCT2017.zip --out oct2017.html
    """
    if out.suffix not in (".html", ".htm"):
        raise OCTError(f"{out}: a page ends in .html")
    check_file_place(out)
    from oct_hf.runs.check import check as check_data
    from oct_hf.runs.data_page import write_page
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    recipe = _recipe(name, overrides, data, skip_bad)
    checked = check_data(recipe)
    write_page(checked, recipe, out)
    if as_json:
        print_json({"page": str(out), **checked.to_dict()})
        return
    tell(out)


@app.command()
def labels(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for the runs, the page and the table.")],
    overrides: Overrides = None,
    data: Data = None,
    folds: Annotated[int, typer.Option(min=2, help="The recipe is trained once for each.")] = 5,
    skip_bad: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other runs in that folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Likely label errors, on a page of pictures to decide on; trains the recipe once for each fold of patients.

    What the page saves is given back to a recipe as data.corrections=corrections.csv. A search
    that was stopped goes on.

    Example: oct-hf data labels octdl --out runs/octdl-labels
    """
    from oct_hf.runs.label_search import TABLE, find_label_errors

    check_place(out)
    with exit_when_stopped():
        found = find_label_errors(_recipe(name, overrides, data, skip_bad), out, folds, overwrite)
    if as_json:
        suspects = [dataclasses.asdict(one) for one in found.suspects]
        facts = {"images": len(found.predictions.labels), "page": str(found.page), "table": str(out / TABLE)}
        print_json(facts | {"suspects": suspects})
        return
    tell(f"{len(found.suspects):,} of {len(found.predictions.labels):,} B-scans have a label that networks contradict")
    tell(f"{found.page}  the page: decide, save corrections.csv, and train with data.corrections=corrections.csv")
    tell(f"{out / TABLE}  all of them as a table")


def _recipe(name: str, overrides: list[str] | None, data: Path | None, skip_bad: bool):
    """The recipe of that name; of a folder or archive, the recipe `folder` on it."""
    from oct_hf.data.catalog import CATALOG
    from oct_hf.training.recipe_file import load_recipe, recipe_names

    if name not in recipe_names() and not name.endswith((".yaml", ".yml")):
        if not Path(name).exists():
            near = did_you_mean(name, CATALOG) or did_you_mean(name, recipe_names())
            raise OCTError(f'no data set, recipe, folder or archive "{name}"{near}; oct-hf data list has the sets')
        return load_recipe("folder", overrides_of(overrides, data or Path(name), skip_bad))
    return load_recipe(name, overrides_of(overrides, data, skip_bad))


def _print_split(checked, split, unit: str) -> None:
    if split.error:
        tell(f"{split.name}: can't be made. {split.error}")
        return
    names = checked.dataset.features["label"].names
    rows = [
        (side, f"{row['images']:,}", f"{row['groups']:,}", *(f"{row['classes'][name]:,}" for name in names))
        for side, row in split.counts.items()
    ]
    print_table(f"{checked.title}: {split.name}", ("side", "B-scans", f"{unit}s", *names), rows)
    counted, near = split.certificate, split.certificate["near_duplicates"]
    found = [
        (f"{unit}s on two sides", counted["patients_on_two_sides"]),
        ("volumes on two sides", counted["volumes_on_two_sides"]),
        ("files on two sides", counted["files_on_two_sides"]),
        (f"near-duplicates across {unit}s, pairs", near["pairs_across_patients"]),
        ("of them on two sides", near["pairs_on_two_sides"]),
        (f"on no side, their {unit} being on another", counted["taken_out"]["patient_held_out"]),
        ("on no side, a near-duplicate being on another", counted["taken_out"]["near_duplicate_held_out"]),
    ]
    print_table("leakage certificate", ("", ""), [(what, f"{number:,}") for what, number in found])
    for what, which, where in split.offenders[:SHOWN]:
        tell(f"{what} {which}: on {where}")
    if len(split.offenders) > SHOWN:
        tell(f"… and {len(split.offenders) - SHOWN} more; --json has them all")


def _say_skipped(skipped: list[dict]) -> None:
    for item in skipped[:SHOWN]:
        say(f"left out: {item['file']} ({item['reason']})")
    if len(skipped) > SHOWN:
        say(f"… and {len(skipped) - SHOWN} more files left out")
