"""`push_to_hub` in a recipe: a real training that pushes to the loopback Hub, in a process of its own."""

import dataclasses
import json
import subprocess
import sys

import yaml

FOLLOW = """
import json, sys
from pathlib import Path
import numpy as np, torch
from huggingface_hub import HfApi
from oct_hf.hub.in_training import BRANCH, TrainingBranch
from oct_hf.model.modeling_oct import OCTForImageClassification
from oct_hf.runs import run as runs
from oct_hf.training.recipe_file import load_recipe

seen = []
push = TrainingBranch.push

def watched(self, save, name, epoch, epochs, validation):
    done = push(self, save, name, epoch, epochs, validation)
    model = OCTForImageClassification.from_pretrained(self.repo, revision=BRANCH).eval()
    files = HfApi().list_repo_files(self.repo, revision=BRANCH)
    pixels = torch.ones(1, 3, 64, 64)
    with torch.inference_mode():
        seen.append([epoch, sorted(files), model(pixel_values=pixels).logits[0].tolist(), validation["log_loss"]])
    return done

TrainingBranch.push = watched
run = runs.finetune(load_recipe(sys.argv[1]), sys.argv[2])
final = OCTForImageClassification.from_pretrained("clinic/tiny").eval()
with torch.inference_mode():
    last = final(pixel_values=torch.ones(1, 3, 64, 64)).logits[0].tolist()
refs = HfApi().list_repo_refs("clinic/tiny")
print(json.dumps({"seen": seen, "last": last, "best": run["training"]["best_epoch"],
                  "branches": sorted(b.name for b in refs.branches), "tags": [t.name for t in refs.tags]}))
"""

BROKEN = """
import sys
from pathlib import Path
from oct_hf.hub import in_training
from oct_hf.hub.patience import Patience
branch = in_training.TrainingBranch("clinic/broken", "broken", patience=Patience(tries=2, first_wait_s=0.1))
branch._api.token = "hf_reader"
save = lambda folder: (folder / "config.json").write_text("{}")
print(branch.push(save, "broken", 1, 3, {"balanced_accuracy": 0.5}))
"""


def call(site, *command, **changes) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env={**site.environment, **changes}, capture_output=True, text=True)


def test_the_best_weights_so_far_are_on_their_branch_and_the_tested_model_on_main(site, tiny, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(dataclasses.replace(tiny, push_to_hub=True).to_yaml())
    done = call(site, "-c", FOLLOW, recipe, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seen"], "no checkpoint was pushed"
    for _, files, _, _ in said["seen"]:
        names = [".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
        assert files == names
    assert said["seen"][-1][0] == said["best"] and said["seen"][-1][2] == said["last"]  # the averaged weights
    assert said["branches"] == ["main", "remote-code"] and said["tags"] == ["v1"]
    assert "published: " in done.stderr and "hf_writer" not in done.stdout + done.stderr
    recipe_there = yaml.safe_load((tmp_path / "run" / "model" / "recipe.yaml").read_text())
    assert recipe_there["push_to_hub"] is False and recipe_there["hub"]["repo"] is None


def test_a_push_that_fails_while_training_is_one_line_and_training_goes_on(site):
    done = call(site, "-c", BROKEN)
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr
    assert "epoch 1 wasn't pushed, training goes on:" in done.stderr and "needs write access" in done.stderr


def test_without_a_token_nothing_is_trained(site, tmp_path):
    command = ["-m", "oct_hf.cli", "finetune", "demo", "push_to_hub=true", "--out", tmp_path / "run"]
    done = call(site, *command, HF_TOKEN="")
    assert done.returncode == 2 and "no token" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()
