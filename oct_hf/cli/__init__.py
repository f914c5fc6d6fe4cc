"""`oct-hf VERB`: parses, calls one function, prints. A file here holds verbs that belong together.

Exit codes: 0 done, 1 the answer is no (verify, --rerun, data check), 2 what was given is wrong (one line says what),
128 + signal when stopped (130 Ctrl-C, 143 SIGTERM, 141 nobody reads the output any more). Verbs import what they need
when they run, so that `--help` answers at once.
"""

import errno
import io
import os
import sys
from importlib.util import find_spec

if find_spec("typer") is None or find_spec("rich") is None:
    sys.exit('the command line needs typer and rich: pip install "oct-hf[cli]"')

from typing import Annotated, Any

import typer
import typer.core

from oct_hf import __version__
from oct_hf.cli.adapt import adapt
from oct_hf.cli.app import app as open_app
from oct_hf.cli.data import app as data_app
from oct_hf.cli.ensemble import ensemble
from oct_hf.cli.evaluate import compare, evaluate
from oct_hf.cli.explain import explain
from oct_hf.cli.export import export
from oct_hf.cli.generate import generate
from oct_hf.cli.options import AsJson
from oct_hf.cli.page import page
from oct_hf.cli.predict import predict
from oct_hf.cli.printing import print_json, print_table, say, tell
from oct_hf.cli.publish import publish, publish_data, verify
from oct_hf.cli.serve import hub, serve
from oct_hf.cli.train import finetune
from oct_hf.cli.tune import tune
from oct_hf.errors import OCTError, did_you_mean

CLOSED_PIPE = 128 + 13  # as a program ends that SIGPIPE ends
# What a machine says of a place that was named, and a person can mend.
PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
PLACES |= {errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


class Program(typer.core.TyperGroup):
    """The whole program; what ends any verb early is met here, while typer would answer a closed pipe with a 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            say("stopped; the same command goes on where it was")
            raise typer.Exit(130) from None
        except OSError as error:
            if nobody_reads():
                raise typer.Exit(CLOSED_PIPE) from None
            if error.errno not in PLACES:
                raise
            raise OCTError(f"{error.filename or 'the output'}: {error.strerror}") from None


app = typer.Typer(
    name="oct-hf",
    cls=Program,
    help="Fine-tune, measure and use retinal OCT classifiers. For research, not for diagnosis.\n\n"
    "Example: oct-hf finetune demo && oct-hf predict runs/demo/model/examples --model runs/demo",
    epilog="Exit codes: 0 done; 1 the answer is no (verify, finetune --rerun, data check); 2 what was given is wrong, "
    "and one line says what; 130, 143 stopped by Ctrl-C, SIGTERM. Results go to stdout, with --json as one JSON "
    "document; remarks and progress go to stderr.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (
    finetune,
    tune,
    ensemble,
    adapt,
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
    as_json: AsJson = False,
) -> None:
    """Versions, devices, recipes, caches, and what each extra lacks.

    Example: oct-hf info
    """
    from oct_hf.about import about

    facts = about()
    if as_json:
        print_json(facts)
        return
    for title, content in facts.items():
        print_table(title, ("", ""), [(key, _in_words(value)) for key, value in content.items()])


def _in_words(fact: Any) -> str:
    if isinstance(fact, dict):  # a cache
        return f"{fact['bytes'] / 1e6:,.1f} MB in {fact['folder']} ({fact['variable']} moves it)"
    return str(fact)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"oct-hf {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an OCTError is one line and exit code 2; anything else is a defect and keeps its traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's alphabet lacks is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="oct-hf", standalone_mode=False)
    except OCTError as error:
        code = _refuse(f"error: {error}")
    except typer.TyperException as error:
        code = _refuse(_one_line(error))
    except SystemExit as ended:  # rich's, where it prints a help that nobody reads
        code = CLOSED_PIPE if nobody_reads() or isinstance(ended.__context__, BrokenPipeError) else ended.code
    sys.exit(code)


def _refuse(line: str) -> int:
    if line:
        say(line)
    return 2


def _one_line(error: Any) -> str:
    """A fault of the command line itself, with the nearest name where one is misspelt; empty after a help."""
    said = error.format_message()
    if not said or "\n" in said:  # typer's help where a group stands alone
        return said
    if getattr(error, "possibilities", None):
        said = f"no such option: {error.option_name}{did_you_mean(error.option_name, error.possibilities)}"
    said, meant, near = said.partition(". Did you mean ")
    said += f" (did you mean {near}" + ")" if meant else ""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "oct-hf"
    return f"error: {said[0].lower()}{said[1:].rstrip('.')}; {path} --help shows how"


def nobody_reads() -> bool:
    """Whether stdout or stderr was closed by its reader, as `| head` does; what is left to say then goes nowhere."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL is what Windows says
                continue
            closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return closed
