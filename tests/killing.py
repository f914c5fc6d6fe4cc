"""Command lines that are run again and again, each in a fork of one process, and killed where a test says.

Forked, since importing torch takes seconds. The faults come from without: an audit hook counts what Python opens for
writing, renames and removes below a folder, and wrappers what torch, safetensors and Arrow write past it. At the event
that was asked for, the process sends itself SIGKILL; with `torn`, the file that was written last loses its second half
before, as where the kill comes in the middle of that write.

    killing = Killing(folder, environment)
    ended = killing.run(["finetune", "recipe.yaml", "--out", "run"], root)              # ended.events: all of them
    killing.run([...], root, at=17)                                                     # killed before the 17th
"""

import atexit
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

# What changes folders, and which of its arguments is the open folder that a path may be relative to.
CHANGING = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
# As where they aren't installed: drawing and exporting take most of the time of a small run, and lie in its model
# folder, which is there whole or not at all.
LEFT_OUT = ("onnx", "onnxruntime", "onnxscript", "openvino", "matplotlib", "captum", "pytorch_grad_cam")
NEEDED = ("oct_hf.cli", "oct_hf.runs.run", "oct_hf.training.recipe_file", "oct_hf.hub.in_training", "usearch.index")


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code (a signal's number below zero), what it said, its events, its seconds."""

    code: int
    said: str
    events: list[str]
    seconds: float


class Killing:
    """The process that forks.

    Args:
        folder: for what the command lines say.
        environment: of the process.
    """

    def __init__(self, folder: Path, environment: dict | None = None):
        self._folder = folder
        environment = {"OMP_NUM_THREADS": "1"} | dict(environment or os.environ)
        tests = str(Path(__file__).parent)
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[1]), tests, environment.get("PYTHONPATH", "")]
        )
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        command: list,
        root: Path,
        at: int | None = None,
        torn: bool = False,
        after_s: float | None = None,
        number: int = signal.SIGKILL,
        once_there: Path | None = None,
    ) -> Ended:
        """Runs a command line of `oct-hf`, with its prepared data in `root/cache`.

        Args:
            command: without `oct-hf`.
            root: what happens below it is an event.
            at: kill before this event, counted from 0.
            torn: halve what was written last.
            after_s: seconds after which it gets a signal.
            number: of that signal.
            once_there: a file or folder whose appearance is awaited before the seconds begin.
        """
        asked = {"command": [str(part) for part in command], "root": str(root), "at": at, "torn": torn}
        asked |= {"after_s": after_s, "number": int(number), "once_there": once_there and str(once_there)}
        return self._ask(asked)[0]

    def at_once(self, commands: list[list], root: Path) -> list[Ended]:
        """Runs command lines beside each other."""
        asked = {"root": str(root), "at": None, "torn": False, "after_s": None, "number": 0, "once_there": None}
        return self._ask(*(asked | {"command": [str(part) for part in command]} for command in commands))

    def _ask(self, *asked: dict) -> list[Ended]:
        folders = [str(self._folder / str(number)) for number in range(len(asked))]
        lines = [one | {"folder": folder} for one, folder in zip(asked, folders, strict=True)]
        self._process.stdin.write(json.dumps(lines) + "\n")
        self._process.stdin.flush()
        return [Ended(**ended) for ended in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Runs:
    """Fine-tunings of one recipe, each in a folder of its own with its own prepared data.

    Attributes:
        folder: of them; the first is `0`.
        whole: how that one ended, which nobody disturbed.
    """

    def __init__(self, killing: Killing, folder: Path, recipe: dict):
        self._killing, self.folder, self._number = killing, folder, 0
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(json.dumps(recipe))
        self.whole = self.run(self.new())
        assert self.whole.code == 0, self.whole.said
        self._wanted = self.content(self.folder / "0")

    def new(self) -> Path:
        root = self.folder / str(self._number)
        root.mkdir()
        self._number += 1
        return root

    def run(self, root: Path, *options, **kill) -> Ended:
        return self._killing.run(["finetune", self.recipe, "--out", root / "run", *options], root, **kill)

    def content(self, root: Path) -> tuple[dict, list[str]]:
        """Checksums of all that a model's folder has and no clock has part in, and what else lies in the run."""
        run = root / "run"
        files = json.loads((run / "model/run.json").read_text())["files"]
        assert {"model.safetensors", "predictions.parquet", "split.csv", "config.json"} <= set(files)
        lie = {path.relative_to(root).as_posix() for path in run.rglob("*") if path.is_file()}
        return files, sorted(lie)

    def check_ends_the_same(self, root: Path, case, *options) -> None:
        ended = self.run(root, *options)
        assert ended.code == 0, (case, ended.said)
        files, lie = self.content(root)
        assert files == self._wanted[0], case
        assert lie == self._wanted[1], (case, set(lie) ^ set(self._wanted[1]))
        if "was already finished" not in ended.said:  # one that trains removes what a killed one has left
            assert not list((root / "cache").glob("pixels-*")), case
        shutil.rmtree(root)

    def kills(self) -> list[tuple[int, bool]]:
        """One before each event, in the middle of the write before it where there was one; before a rename both.

        Not of what goes with the process, when all is done.
        """
        events, found = self.whole.events, []
        for number, event in enumerate(events):
            wrote = number > 0 and events[number - 1].startswith(("open", "write"))
            if event.startswith("os.remove /cache/pixels-"):
                continue
            found += [(number, True)] * wrote + [(number, False)] * (not wrote or event.startswith("os.rename"))
        return found


# --- in the process --------------------------------------------------------------------------------------------------


class Counted:
    """What happens below a folder, and the kill at one of these events."""

    def __init__(self, asked: dict):
        self.root, self.at, self.torn = asked["root"], asked["at"], asked["torn"]
        self.count, self.last = 0, None
        self.record = os.open(os.path.join(asked["folder"], "events"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(self._hear)
        self._wrap()

    def _hear(self, event: str, about: tuple) -> None:
        if event == "open":
            path, _, flags = about
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                self.happens("open", path, writes=True)
        elif event in CHANGING:
            path, folder = about[0], about[CHANGING[event]]
            if isinstance(folder, int) and folder >= 0:  # as shutil.rmtree does
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            if event != "os.mkdir" or not os.path.exists(path):
                self.happens(event, path)

    def happens(self, what: str, path, writes: bool = False, anywhere: bool = False) -> None:
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not (anywhere or path.startswith(self.root)):
            return
        number, self.count = self.count, self.count + 1
        if number == self.at:
            if self.torn and self.last and os.path.exists(self.last):
                os.truncate(self.last, os.path.getsize(self.last) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self.record, f"{what} {path.removeprefix(self.root)}\n".encode())
        self.last = path if writes else None

    def _wrap(self) -> None:
        """Those that write from C++ or Rust, which no audit hook hears."""
        import pyarrow.parquet as pq
        import safetensors.torch
        import torch
        from huggingface_hub.utils import get_session

        def counted(function, place):
            def call(*given, **options):
                self.happens("write", given[place], writes=True)
                return function(*given, **options)

            return call

        torch.save = counted(torch.save, 1)
        safetensors.torch.serialize_file = counted(safetensors.torch.serialize_file, 1)
        pq.ParquetWriter.__init__ = counted(pq.ParquetWriter.__init__, 1)
        client = get_session()
        send = client.send

        def heard(request, **options):
            self.happens("request", f"{request.method} {request.url.path}", anywhere=True)
            return send(request, **options)

        client.send = heard


def answer(asked: list[dict]) -> list[dict]:
    began = time.monotonic()
    children = [_forked(one) for one in asked]
    return [_ended(child, one, began) for child, one in zip(children, asked, strict=True)]


def _forked(asked: dict) -> int:
    os.makedirs(asked["folder"], exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 70  # of a defect
    try:
        code = _in_child(asked)
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(child: int, asked: dict, began: float) -> dict:
    code = _wait(child, asked, began)
    events, said = (Path(asked["folder"], name).read_text(errors="replace") for name in ("events", "said"))
    return {"code": code, "said": said, "events": events.splitlines(), "seconds": time.monotonic() - began}


def _in_child(asked: dict) -> int:
    out = os.open(os.path.join(asked["folder"], "said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import datasets

    from oct_hf import cli

    datasets.config.HF_DATASETS_CACHE = Path(asked["root"]) / "cache"
    Counted(asked)
    sys.argv = ["oct-hf", *asked["command"]]
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def _wait(child: int, asked: dict, began: float) -> int:
    waited, left = asked["once_there"], asked["after_s"]
    since = None if waited else began
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if since is None and os.path.exists(waited):
            since, left = time.monotonic(), left or 0.0
        if left is not None and since is not None and time.monotonic() - since >= left:
            os.kill(child, asked["number"])
            left = None
        time.sleep(0.002)


RECIPE = {
    "name": "tiny",
    "data": {"name": "phantom", "patients": 5, "scans": 1, "height": 64, "width": 64, "public": True},
    "split": {"validation": 0.2, "test": 0.3},
    "model": {"base": "test_efficientnet", "weights": "random", "image_size": 64, "dropout": 0.1},
    "augment": "light",
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "ema": 0.8, "freeze_epochs": 1, "workers": 0},
    "evaluation": {"explain": 0},
}


def main() -> None:
    for name in LEFT_OUT:
        sys.modules[name] = None
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork's first collection would copy all of it
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
