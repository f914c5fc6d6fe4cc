"""The code blocks of a document, and a page's blocks run as its reader would: in order, in one shell, in one folder.

A block whose fence names a file (`title="clinic.yaml"`) is that file. Above a fence, `<!-- not run: why -->` is the
reason of a block that no test can run, and `<!-- exits 2 -->` the exit code that each of its commands has.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]
RUNNABLE = ("bash", "python")
_BLOCK = re.compile(
    r"(?:^<!-- (?:not run: (?P<reason>[^\n]+?)|exits (?P<exits>\d+)) -->\n\s*)?"
    r"^```(?P<language>[a-z]*)(?P<options>[^\n]*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        file: what its fence calls the file that it is; None of others.
        reason: why it isn't run; None of those that are.
        exits: with which code each command ends.
    """

    page: str
    line: int
    language: str
    code: str
    file: str | None
    reason: str | None
    exits: int = 0

    @property
    def runs(self) -> bool:
        return self.reason is None and (self.language in RUNNABLE or self.file is not None)


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a document, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        line = text.count("\n", 0, match.start("language")) + 1
        name = str(page.relative_to(TOP))
        exits, file = int(match["exits"] or 0), title and title[1]
        found.append(Block(name, line, match["language"], match["code"], file, match["reason"], exits))
    return found


def script_of(blocks: list[Block]) -> str:
    """One bash script of the blocks that run; Python blocks that follow one another are one program."""
    parts, programs = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"], []

    def end_program() -> None:
        if programs:
            parts.append("python - <<'END OF PROGRAM'\n" + "\n".join(programs) + "\nEND OF PROGRAM")
            programs.clear()

    for block in blocks:
        if block.file is not None:
            end_program()
            parts.append(
                f"mkdir -p $(dirname {block.file}); cat > {block.file} <<'END OF FILE'\n{block.code}END OF FILE"
            )
        elif block.language == "python":
            programs.append(block.code)
        else:
            end_program()
            parts.append(f"echo '--- {block.page}:{block.line}' >&2\n{_commands(block)}")
    end_program()
    return "\n".join(parts) + "\n"


def _commands(block: Block) -> str:
    if not block.exits:
        return block.code
    lines = block.code.replace("\\\n", " ").strip().splitlines()
    return "\n".join(f"code=0; {line} || code=$?; test $code = {block.exits}" for line in lines)


def run_page(page: Path, folder: Path, seconds: int = 1200) -> str:
    """Runs a page's blocks in a folder, with a home and caches of their own; gives what they printed.

    Raises:
        AssertionError: a block failed; the text has what was printed last.
    """
    return run_script(script_of([block for block in blocks_of(page) if block.runs]), folder, seconds)


def own_programs(folder: Path) -> Path:
    """A folder for PATH with `python` and `oct-hf`, which are these here."""
    programs = folder / ".bin"
    programs.mkdir(parents=True)
    for name, module in (("python", ""), ("oct-hf", " -m oct_hf.cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return programs


def run_script(script: str, folder: Path, seconds: int) -> str:
    """Runs a bash script in which `oct-hf` and `python` are these here."""
    programs, home = own_programs(folder), folder / ".home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OCT_HF_"))}
    environment |= {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(TOP), environment.get("PYTHONPATH")))),
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout + done.stderr
