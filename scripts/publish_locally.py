"""Publishes a run to a Hub on this machine, then does with it by its id what strangers will: load, ask, verify.

python scripts/publish_locally.py RUN   (everything else is made for it and removed afterwards)
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

REPO = "local/oct-demo"
OCT_HF = [sys.executable, "-m", "oct_hf.cli"]


@contextmanager
def background(command: list, environment: dict, ready: str):
    """A server process; yields the line with which it says that it is ready."""
    print(f"\n$ {shown(command)} &")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, **streams)
    try:
        for line in process.stdout:
            if ready in line:
                yield line.strip()
                break
        else:
            sys.exit(f"{shown(command)} ended")
    finally:
        process.terminate()
        process.wait()


def run(command: list, environment: dict) -> None:
    """A command as a person would type it, with its output."""
    print(f"\n$ {shown(command)}", flush=True)
    done = subprocess.run([*map(str, command)], env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def shown(command: list) -> str:
    """The command line, with the program's own name in place of this Python."""
    words = [str(word) for word in command]
    return " ".join(["oct-hf", *words[3:]] if words[:3] == OCT_HF else ["python", *words[1:]])


def ask(server: str, image: Path) -> None:
    """The Hub's inference API, as its widget and InferenceClient ask it."""
    from huggingface_hub import InferenceClient

    print(f"\n>>> InferenceClient(model={server!r}).image_classification({str(image)!r}, top_k=2)")
    for answer in InferenceClient(model=server).image_classification(str(image), top_k=2):
        print(f"  {answer.label} {answer.score:.3f}")


def main(folder: Path) -> None:
    """Hub, publish, load by id, widget, verify."""
    images = sorted((folder / "model" / "examples").glob("*.png"))
    with tempfile.TemporaryDirectory() as scratch:
        # A cache of its own: what is loaded must come from this Hub, not from an earlier demo.
        environment = {**os.environ, "HF_HUB_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "0"}
        with background([*OCT_HF, "hub", "--root", f"{scratch}/hub", "--port", "0"], environment, "export") as line:
            environment |= dict(word.split("=", 1) for word in line.split()[1:])
            run([*OCT_HF, "publish", folder, "--repo", REPO], environment)
            loader = os.path.relpath(Path(__file__).with_name("load_anywhere.py"))
            run([sys.executable, loader, REPO, *images[:3]], environment)
            with background([*OCT_HF, "serve", REPO, "--port", "0"], environment, "answers at") as line:
                ask(line.split("answers at ")[1].split()[0], images[0])
            run([*OCT_HF, "verify", REPO], environment)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
