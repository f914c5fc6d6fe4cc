"""`oct-hf VERB`: parses, calls one function, prints. A file here holds verbs that belong together.

Exit codes: 0 done, 1 the answer is no (verify, --rerun, data check), 2 what was given is wrong (one line says what),
128 + signal when stopped. Verbs import what they need when they run, so that `--help` answers at once.
"""

import sys
from importlib.util import find_spec

if find_spec("typer") is None or find_spec("rich") is None:
    sys.exit('the command line needs typer and rich: pip install "oct-hf[cli]"')

import json
from typing import Annotated

import typer

from oct_hf import __version__
from oct_hf.cli.app import app as open_app
from oct_hf.cli.data import app as data_app
from oct_hf.cli.ensemble import ensemble
from oct_hf.cli.evaluate import compare, evaluate
from oct_hf.cli.explain import explain
from oct_hf.cli.export import export
from oct_hf.cli.generate import generate
from oct_hf.cli.page import page
from oct_hf.cli.predict import predict
from oct_hf.cli.printing import print_table, say
from oct_hf.cli.publish import publish, publish_data, verify
from oct_hf.cli.serve import hub, serve
from oct_hf.cli.train import finetune
from oct_hf.cli.tune import tune
from oct_hf.errors import OCTError

app = typer.Typer(
    name="oct-hf",
    help="Fine-tune, measure and use retinal OCT classifiers. For research, not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (
    finetune,
    tune,
    ensemble,
    evaluate,
    compare,
    predict,
    explain,
    export,
    generate,
    page,
    publish,
    publish_data,
    verify,
    serve,
    open_app,
)
for verb in (*VERBS, hub):
    app.command()(verb)
app.add_typer(data_app, name="data")


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
        print_table(title, ("", ""), [(key, str(value)) for key, value in content.items()])


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
        say(f"error: {error}")
        sys.exit(2)
    except SystemExit as ended:
        if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):  # typer ends without a word
            say("stopped; the same command goes on where it was")
        raise
