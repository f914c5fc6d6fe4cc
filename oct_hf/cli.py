"""`oct-hf VERB`: parses, calls one function, prints.

Exit codes: 0 done, 1 the answer is no (verify, --rerun), 2 what was given is wrong (one line says what), 128 + signal
when stopped. Verbs import what they need when they run, so that `--help` answers at once.
"""

import sys
from importlib.util import find_spec

if find_spec("typer") is None or find_spec("rich") is None:
    sys.exit('the command line needs typer and rich: pip install "oct-hf[cli]"')

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from oct_hf import __version__
from oct_hf.errors import OCTError

app = typer.Typer(
    name="oct-hf",
    help="Fine-tune, measure and use retinal OCT classifiers. For research, not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SHOWN = 10  # untrue things of one kind; all of them with --json
Data = Annotated[Path | None, typer.Option("--data", "-d", help="Folder or zip with the images.")]


@app.command()
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
    given = _overrides(overrides, data, skip_bad)
    if again and recipe:
        given.insert(0, recipe)  # it stands where the recipe would
    if not again and not recipe:
        raise OCTError("which recipe? demo, neh_2018, oct2017, folder, a .yaml file, or --rerun REPO")
    difference = None
    _prepare_for_other_hubs()
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
        _say(str(stopped))
        raise typer.Exit(stopped.exit_code) from None
    if was_done:
        _say(f"{folder} was already finished; --overwrite trains it again")
    _print_result(run["results"]["test"], f"{run['name']} on the test side", run["data"]["grouped_by"])
    if run["data"]["left_out"]:
        _say(f"left out: {run['data']['left_out']} files that can't be used or repeat others")
    _print_places(folder)
    if difference is not None:
        _print_difference(difference, again)
        raise typer.Exit(0 if difference.agrees else 1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[data.KEY=VALUE]...")] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Write the predictions to this .parquet file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics as JSON.")] = False,
) -> None:
    """Measure a model on labelled images, or again from its own predictions.

    Example: oct-hf evaluate runs/demo --data clinic/ data.csv=patients.csv
    """
    from oct_hf.training.recipe import load_recipe

    given = None
    if data is not None or overrides:
        given = load_recipe("folder", ["data.name=folder", *_overrides(overrides, data)]).data

    from oct_hf.runs import run as runs

    result = runs.evaluate_model(model, given, out)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_result(result, f"{model} on {data or 'its own test predictions'}")


@app.command()
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
        _say(f"{len(rows) - len(failed)} of {len(rows)} files classified: {out}")
    if failed:
        _say(f"{len(failed)} file(s) couldn't be read; see the column error")
    if len(failed) == len(rows):
        raise typer.Exit(2)


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    repo: Annotated[str, typer.Option(help="Repository id, such as you/oct-model.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to publish to.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    gated: Annotated[
        str | None, typer.Option(metavar="auto|manual", help="Who downloads must ask; you grant it, or the Hub does.")
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="Of each step, where the Hub fails or is silent.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, and send nothing.")] = False,
) -> None:
    """Upload a run's repository in one commit, with a version tag and the remote-code branch.

    Example: oct-hf publish runs/demo --repo you/oct-demo
    """
    _prepare_for_other_hubs()
    from oct_hf.hub import publish as publishing
    from oct_hf.hub.patience import Patience

    if dry_run:
        folder = publishing.repository_folder(run)
        files = publishing.contents(folder, repo)
        sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in files.items()}
        _print_table(f"to {repo}@{revision}", ("file", "bytes"), [(name, f"{n:,}") for name, n in sizes.items()])
        return
    talk = _say if sys.stderr.isatty() else lambda _: None  # a log gets what came of it, in one line
    talk(f"publishing {run} to {repo}; Ctrl-C stops it, and the same command goes on")
    patience = Patience(tries=tries, say=talk)
    options = {"private": private, "revision": revision, "create_pr": create_pr, "gated": gated}
    done = publishing.publish(run, repo, **options, patience=patience)
    print(done.url)
    if create_pr and done.commit is not None:
        _say("a pull request carries the branch's files; tag and remote-code branch come when it is published itself")
    elif done.commit is None:
        _say("nothing had changed")
    else:
        _say(f"{len(done.files)} files in one commit" + (f", tagged {done.tag}" if done.tag else ""))


@app.command("publish-data")
def publish_data(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (demo, oct2017, folder, …) or a .yaml file.")],
    repo: Annotated[str, typer.Option(help="Repository id, such as you/oct-data.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    data: Data = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without the files that can't be used.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --dry-run: write what would go up to this new folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, and send nothing.")] = False,
) -> None:
    """Upload a recipe's B-scans as a data set: Parquet with card and Croissant, split as fine-tuning splits it.

    Example: oct-hf publish-data oct2017 --data OCT2017/ --repo you/oct2017
    """
    from oct_hf.training.recipe import load_recipe

    if out is not None and not dry_run:
        raise OCTError("--out goes with --dry-run")
    chosen = load_recipe(recipe, _overrides(overrides, data, skip_bad))
    _prepare_for_other_hubs()

    from oct_hf.runs import data_set
    from oct_hf.runs.labelled import is_public

    if dry_run:
        files = data_set.dry_run(chosen, repo, out)
        _print_table(f"to the data set {repo}", ("file", "bytes"), [(name, f"{n:,}") for name, n in files.items()])
    else:
        done = data_set.publish_data(chosen, repo, private=private)
        print(done.url)
        _say("nothing had changed" if done.commit is None else f"{len(done.files)} files in one commit")
    if not is_public(chosen.data):
        _say(
            "patient ids are pseudonyms and metadata was removed; text in the pixels was not searched for: look at them"
        )


@app.command()
def verify(
    model: Annotated[str, typer.Argument(metavar="REPO[@REVISION]", help="A Hub id, a run or a model folder.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The data set: predict its images again and compare.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check what a published model says of itself; exits 1 where something is untrue.

    Example: oct-hf verify you/oct-model --data OCT2017/
    """
    _prepare_for_other_hubs()
    from oct_hf.hub.download import download
    from oct_hf.hub.verify import verify as check
    from oct_hf.runs.again import drawn_data, predict_again
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    found = download(model)
    predict = predict_again(data) if data or drawn_data(found) else None
    checks = check(found, predict)
    untrue = [fault for one in checks for fault in one.faults]
    if as_json:
        print(json.dumps({"model": model, "commit": found.commit, "checks": [vars(one) for one in checks]}, indent=2))
    else:
        rows = [(c.name, "–" if c.skipped else "UNTRUE" if c.faults else "holds", c.note) for c in checks]
        _print_table(f"{model}{f' ({found.commit})' if found.commit else ''}", ("claim", "", ""), rows)
        for one in checks:
            print("".join(f"{fault}\n" for fault in one.faults[:SHOWN]), end="")
            if len(one.faults) > SHOWN:
                print(f"… and {len(one.faults) - SHOWN} more of {one.name}; --json has them all")
        print(f"{len(untrue)} untrue" if untrue else "everything that was checked holds")
    raise typer.Exit(1 if untrue else 0)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A run, a model folder or a Hub id.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; leave it unless you mean to open it.")] = "127.0.0.1",
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward pass at most.")] = 8,
    runtime: Annotated[
        str, typer.Option(help="onnx: ONNX Runtime, with the repository's own file; torch; auto: onnx if it can.")
    ] = "auto",
) -> None:
    """Answer the Hub's inference API over HTTP: POST an image, get labels and scores; /docs, /health, /metrics.

    One B-scan a request, raw or as base64 in JSON: 10 MiB, 16 megapixels.
    Addresses aren't fetched. 128 requests wait at most; more get 503.
    No authentication, no TLS. SIGTERM (exit code 143) or Ctrl-C (130)
    ends it after it has answered what it accepted.

    Example: oct-hf serve runs/demo --port 8000
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
        raise OCTError('serving needs FastAPI, uvicorn and prometheus-client: pip install "oct-hf[serve]"')
    from oct_hf import serving

    taken = serving.take_port(port, host)
    from oct_hf.inference.predictor import quiet_transformers
    from oct_hf.inference.runtime import serving_predictor, share_cores
    from oct_hf.inference.server import create_app
    from oct_hf.model.folder import model_folder

    quiet_transformers()
    batches, threads = share_cores()
    predictor = serving_predictor(model_folder(model), runtime, batch_size, threads)
    name = Path(model).resolve().name if Path(model).exists() else model  # not where it lies on this machine
    served = create_app(predictor, name, model_threads=batches)
    place = f"http://{host}:{taken.getsockname()[1]}"
    ready = f"{model} answers at {place} ({place}/docs says how; /health, /metrics); Ctrl-C ends it"
    raise typer.Exit(128 + serving.run_until_stopped(served, taken, lambda: _say(ready)))


@app.command()
def hub(
    root: Annotated[Path, typer.Option(help="Folder for everything the Hub keeps.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen on; leave it unless you mean to open it.")] = "127.0.0.1",
    address: Annotated[str | None, typer.Option(help="http://… that clients use, where a proxy is in front.")] = None,
    log: Annotated[bool, typer.Option("--log", help="A line a request: method, path and status; no tokens.")] = False,
) -> None:
    """Run a Hub for one site on this machine, for demonstrations and closed networks.

    Example: oct-hf hub --root hub/
    """
    import time

    _prepare_for_other_hubs()
    if find_spec("uvicorn") is None or find_spec("fastapi") is None:
        raise OCTError('the loopback Hub needs FastAPI and uvicorn: pip install "oct-hf[hub]"')
    from oct_hf.hub.local import running
    from oct_hf.hub.store import read_tokens

    root.mkdir(parents=True, exist_ok=True)
    tokens = read_tokens(root / "tokens.json")
    with running(root, tokens, port, host, address, say=_say if log else None) as served:
        first = next(iter(tokens))
        print(f"export HF_ENDPOINT={served.state.address} HF_HUB_DISABLE_XET=1 HF_TOKEN={first}", flush=True)
        _say(f"the Hub of {tokens[first].name} is running; tokens are in {root / 'tokens.json'}; Ctrl-C ends it")
        while True:
            time.sleep(3600)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Versions, devices, recipes, caches, and what each extra lacks."""
    from oct_hf.about import about

    facts = about()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for title, content in facts.items():
        _print_table(title, ("", ""), [(key, str(value)) for key, value in content.items()])


def _version(wanted: bool) -> None:
    if wanted:
        print(f"oct-hf {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an OCTError is one line and exit code 2; anything else is a defect and keeps its traceback."""
    try:
        app()
    except OCTError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except SystemExit as ended:
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):  # typer ends without a word
            _say("stopped; the same command goes on where it was")
        raise


def _overrides(given: list[str] | None, data: Path | None, skip_bad: bool = False) -> list[str]:
    """What the command line changes in a recipe, its options as `key=value` too."""
    path = [f"data.path={json.dumps(str(data))}"] if data is not None else []
    return [*(given or []), *path, *(["data.skip_bad=true"] if skip_bad else [])]


def _prepare_for_other_hubs() -> None:
    """A Hub without Xet storage refuses uploads unless huggingface_hub is told before it is imported."""
    if "huggingface.co" not in os.environ.get("HF_ENDPOINT", "huggingface.co"):
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_table(title: str, columns: tuple, rows: list[tuple]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(title)  # not the table's own title, which is wrapped to the table's width
    table = Table(box=box.SIMPLE, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 or not column else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: file names and labels are no markup
    Console(highlight=False).print(table)


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _print_result(result: dict, title: str, unit: str = "patient") -> None:
    names = list(result["per_class"])
    rows = []
    for name, counts in zip(names, result["confusion_matrix"], strict=True):
        scores = (_score(result["per_class"][name][key]) for key in ("recall", "specificity", "auroc"))
        rows.append((name, *map(str, counts), *scores))
    columns = ("true", *(f"→ {name}" for name in names), "sens.", "spec.", "AUROC")
    _print_table(f"{title}: {result['n']} B-scans, {result['groups']} {unit}s", columns, rows)
    keys = ("balanced_accuracy", "accuracy", "auroc", "f1", "mcc", "log_loss", "ece")
    print("  ".join(f"{key.replace('_', ' ')} {_score(result[key])}" for key in keys))


def _print_predictions(rows: list[dict], labels: tuple[str, ...]) -> None:
    table = [
        (
            row["file"],
            row["error"] or row["predicted"],
            *(_score(row[f"p_{name}"]) if not row["error"] else "" for name in labels),
        )
        for row in rows
    ]
    _print_table("predictions", ("file", "predicted", *labels), table)


def _print_difference(difference, published: str) -> None:
    rows = [
        (
            name.replace("_", " "),
            _score(then),
            _score(now),
            f"{span[0]:.3f}–{span[1]:.3f}" if span else "",
        )
        for name, then, now, span in difference.metrics
    ]
    columns = ("test side", "published", "again", "published 95 % interval")
    _print_table(f"{published}, trained again", columns, rows)
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


if __name__ == "__main__":
    main()
