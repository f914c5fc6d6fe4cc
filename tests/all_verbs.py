"""Runs command lines of the program one after the other: `python all_verbs.py PLAN.json`, in a folder for their output.

A plan lists steps: `name`, `words` after `oct-hf`, and for a server `ask`, a file that it is sent once it answers. What
a step says goes to said/NAME and said/NAME.out, exit codes to codes.json. The plan's `hub` runs beside them. Steps are
forked off a process that has imported what is slow, so that each has its own environment and modules; with `anew` each
is a process of its own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PROGRAM = [sys.executable, "-m", "oct_hf.cli"]


def run_forked(words: list[str], out, error) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1), os.dup2(error.fileno(), 2)
        sys.argv = ["oct-hf", *words]
        code = 1
        try:
            from oct_hf.cli import main

            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def answers_at(process: subprocess.Popen, said: Path) -> str:
    """The address that a server says it answers at."""
    while process.poll() is None:
        if found := re.search(r"http://[\w.:]+", said.read_text()):
            return found[0].rstrip(":.")
        time.sleep(0.1)
    raise SystemExit(f"{said}: the server ended: {said.read_text()}")


def ask(words: list[str], sent: Path, out, error, said: Path) -> int:
    """Starts a server, posts it a file (a page is only fetched), and ends it."""
    process = subprocess.Popen([*PROGRAM, *words], stdout=out, stderr=error)
    address = answers_at(process, said)
    for path, body in (("/", sent.read_bytes()), ("/", None), ("/metrics", None)):
        try:
            urllib.request.urlopen(urllib.request.Request(address + path, body), timeout=60).read()
        except urllib.error.HTTPError as refused:  # a page takes no POST
            print(path, refused.code, file=error)
    process.send_signal(signal.SIGINT)
    return process.wait()


def run_step(step: dict, anew: bool, said: Path) -> int:
    """A step's exit code."""
    with open(said / f"{step['name']}.out", "w") as out, open(said / step["name"], "w") as error:
        if "ask" in step:
            return ask(step["words"], Path(step["ask"]), out, error, said / step["name"])
        if anew:
            return subprocess.run([*PROGRAM, *step["words"]], stdout=out, stderr=error).returncode
        return run_forked(step["words"], out, error)


def main(plan: dict) -> None:
    said, codes = Path("said"), {}
    said.mkdir()
    with open(said / "hub.out", "w") as out, open(said / "hub", "w") as error:
        hub = subprocess.Popen([*PROGRAM, *plan["hub"]], stdout=out, stderr=error)
    try:
        os.environ["HF_ENDPOINT"] = answers_at(hub, said / "hub.out")
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        if not plan["anew"]:  # what the verbs themselves import of these is then there
            import datasets  # noqa: F401
            import timm  # noqa: F401
            import transformers  # noqa: F401
        for step in plan["steps"]:
            began = time.monotonic()
            codes[step["name"]] = run_step(step, plan["anew"], said)
            print(f"{time.monotonic() - began:6.1f} s  {codes[step['name']]}  {step['name']}", flush=True)
    finally:
        hub.send_signal(signal.SIGINT)
        codes["hub"] = hub.wait()
    Path("codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
