"""The README's code runs, and its commands and those of docs/ name recipes and keys that exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from oct_hf.cli import app
from oct_hf.training.recipe_file import load_recipe
from tests.data.volumes.write import bscans
from tests.data.volumes.write_binary import write_e2e

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((TOP / "docs").glob("*.md")))


def test_every_python_block_runs_beside_a_finished_demo(finished_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished_run)
    write_e2e(tmp_path / "scan.e2e", {"R": bscans(3)})
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "DME" in done.stdout


def test_every_command_names_a_verb_a_recipe_and_keys_that_exist():
    verbs = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    verbs |= {group.name for group in app.registered_groups}
    commands = [shlex.split(line, comments=True) for line in re.findall(r"oct-hf [a-z][a-z-]* [^`\n]+", README + DOCS)]
    assert {command[1] for command in commands} <= verbs
    fine_tunings = [command[2:] for command in commands if command[1] == "finetune" and command[2] != "--rerun"]
    assert len(fine_tunings) >= 8
    for recipe, *rest in fine_tunings:
        if recipe != "NAME" and not recipe.endswith("best.yaml"):  # a search writes that one
            load_recipe(recipe, [word for word in rest if "=" in word])
    for override in re.findall(r"`'?((?:data|model|split|pretrain|teacher)\.[\w.]+=[^`']+)'?`", README + DOCS):
        load_recipe("efficientnetv2_b0_offline" if override.startswith("teacher.") else "folder", [override])


def test_every_published_system_has_a_row_of_results():
    systems = re.findall(r"^\| `(\w+)` \|", (TOP / "docs" / "systems.md").read_text(encoding="utf-8"), re.MULTILINE)
    results = (TOP / "RESULTS.md").read_text(encoding="utf-8")
    # Without a network, hybrid_aco is the one on networks that pip installs.
    missing = [name for name in systems if name != "hybrid_aco" and f"| {name} |" not in results]
    assert len(systems) >= 15 and not missing
