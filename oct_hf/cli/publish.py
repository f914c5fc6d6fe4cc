"""`oct-hf publish`, `publish-data` and `verify`: to a Hub, and what is there checked."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import (
    AsJson,
    Data,
    Overrides,
    SkipBad,
    check_place,
    complete_recipe,
    overrides_of,
    prepare_for_other_hubs,
)
from oct_hf.cli.printing import print_json, print_table, say, tell
from oct_hf.errors import OCTError

SHOWN = 10  # untrue things of one kind; all of them with --json


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
    as_json: AsJson = False,
) -> None:
    """Upload a run's repository in one commit, with a version tag and the remote-code branch.

    Example: oct-hf publish runs/demo --repo you/oct-demo
    """
    prepare_for_other_hubs()
    from oct_hf.hub import publish as publishing
    from oct_hf.hub.patience import Patience

    if dry_run:
        folder = publishing.repository_folder(run)
        files = publishing.contents(folder, repo)
        sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in files.items()}
        if as_json:
            print_json({"repo": repo, "revision": revision, "bytes": sizes})
        else:
            print_table(f"to {repo}@{revision}", ("file", "bytes"), [(name, f"{n:,}") for name, n in sizes.items()])
        return
    talk = say if sys.stderr.isatty() else lambda _: None  # a log gets what came of it, in one line
    talk(f"publishing {run} to {repo}; Ctrl-C stops it, and the same command goes on")
    patience = Patience(tries=tries, say=talk)
    options = {"private": private, "revision": revision, "create_pr": create_pr, "gated": gated}
    done = publishing.publish(run, repo, **options, patience=patience)
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        tell(done.url)
    if create_pr and done.commit is not None:
        say("a pull request carries the branch's files; tag and remote-code branch come when it is published itself")
    elif done.commit is None:
        say("nothing had changed")
    else:
        say(f"{len(done.files)} files in one commit" + (f", tagged {done.tag}" if done.tag else ""))


def publish_data(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (demo, oct2017, folder, …) or a .yaml file.", autocompletion=complete_recipe
        ),
    ],
    repo: Annotated[str, typer.Option(help="Repository id, such as you/oct-data.")],
    overrides: Overrides = None,
    data: Data = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    skip_bad: SkipBad = False,
    out: Annotated[Path | None, typer.Option(help="With --dry-run: write what would go up to this new folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go up, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a recipe's B-scans as a data set: Parquet with card and Croissant, split as fine-tuning splits it.

    Example: oct-hf publish-data oct2017 --data OCT2017/ --repo you/oct2017
    """
    from oct_hf.training.recipe_file import load_recipe

    if out is not None and not dry_run:
        raise OCTError("--out goes with --dry-run")
    check_place(out)
    chosen = load_recipe(recipe, overrides_of(overrides, data, skip_bad))
    prepare_for_other_hubs()

    from oct_hf.runs import data_set
    from oct_hf.runs.labelled import is_public

    if dry_run:
        files = data_set.dry_run(chosen, repo, out)
        if as_json:
            print_json({"repo": repo, "bytes": files})
        else:
            print_table(f"to the data set {repo}", ("file", "bytes"), [(name, f"{n:,}") for name, n in files.items()])
    else:
        done = data_set.publish_data(chosen, repo, private=private)
        if as_json:
            print_json(dataclasses.asdict(done))
        else:
            tell(done.url)
        say("nothing had changed" if done.commit is None else f"{len(done.files)} files in one commit")
    if not is_public(chosen.data):
        say(
            "patient ids are pseudonyms and metadata was removed; text in the pixels was not searched for: look at them"
        )


def verify(
    model: Annotated[str, typer.Argument(metavar="REPO[@REVISION]", help="A Hub id, a run or a model folder.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The data set: predict its images again and compare.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what a published model says of itself; exits 1 where something is untrue.

    Example: oct-hf verify you/oct-model --data OCT2017/
    """
    if data is not None and not data.exists():
        raise OCTError(f"{data}: no such folder or zip")
    prepare_for_other_hubs()
    from oct_hf.hub.download import download
    from oct_hf.hub.verify import verify as check
    from oct_hf.runs.again import drawn_data, explain_again, predict_again, search_again
    from oct_hf.runs.run import quiet_libraries

    quiet_libraries()
    found = download(model)
    if data or drawn_data(found):
        checks = check(found, predict_again(data), search_again(data), explain_again(data))
    else:
        checks = check(found)
    untrue = [fault for one in checks for fault in one.faults]
    if as_json:
        print_json({"model": model, "commit": found.commit, "checks": [vars(one) for one in checks]})
    else:
        rows = [(c.name, "–" if c.skipped else "UNTRUE" if c.faults else "holds", c.note) for c in checks]
        print_table(f"{model}{f' ({found.commit})' if found.commit else ''}", ("claim", "", ""), rows)
        for one in checks:
            for fault in one.faults[:SHOWN]:
                tell(fault)
            if len(one.faults) > SHOWN:
                tell(f"… and {len(one.faults) - SHOWN} more of {one.name}; --json has them all")
        tell(f"{len(untrue)} untrue" if untrue else "everything that was checked holds")
    raise typer.Exit(1 if untrue else 0)
