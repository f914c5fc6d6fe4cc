"""Verify, for both kinds of models: no number of a card or of run.json can be changed without being named."""

import copy
import re

import pytest

from oct_hf.hub import verify as module
from oct_hf.hub.card_text import card_faults
from oct_hf.hub.claims import read_claims
from oct_hf.hub.download import download

# Names that the faults of a card's tables must give between them.
_LABELS = ["Accuracy", "Balanced accuracy", "AUROC", "F1", "kappa", "Log loss", "calibration"]
_SIGNS = ["AUROC", "AUPRC", "mean over the signs", "temperature", "calibration error", "Brier score", "log loss"]
_SIGNS += ["if perfect", "largest sum", "specificity", "Balanced accuracy", "called undetermined"]
ON_CARD = {
    "finished_run": [*_LABELS, "CNV", "DME", "DRUSEN", "NORMAL"],
    "finished_signs_run": [*_SIGNS, "drusen", "MNV", "SRF", "IRF", "exudates", "CNV", "NORMAL"],
}
IN_RUN_JSON = {
    "finished_run": ("results", "split", "recipe"),
    "finished_signs_run": ("signs", "gate", "split", "recipe"),
}


@pytest.fixture(params=list(ON_CARD))
def published(request):
    """The name of a fixture of a finished run, and its repository."""
    return request.param, request.getfixturevalue(request.param) / "model"


def test_every_number_on_the_card_is_caught_when_it_is_changed_and_its_metric_named(published):
    of, repository = published
    names = ON_CARD[of]
    text = (repository / "README.md").read_text()
    assert card_faults(text, text) == []
    numbers = list(re.finditer(r"\d+(?:\.\d+)?", text))
    assert len(numbers) > 120
    seen = set()
    for number in numbers:
        digit = str((int(number[0][-1]) + 1) % 10 or 1)  # a 0 at the end would not be written
        changed = text[: number.start()] + number[0][:-1] + digit + text[number.end() :]
        found = card_faults(changed, text)
        assert found, text[max(0, number.start() - 40) : number.end() + 10]
        assert any(number[0][:-1] + digit in fault for fault in found), (found, number[0])
        line = text[text.rfind("\n", 0, number.start()) + 1 : text.find("\n", number.end())]
        if line.startswith("|") and text[number.end() :].split("\n", 2)[1].startswith("|--"):
            assert "columns of the table by" in found[0]  # the F1 or the 95 % of a column's name
        elif line.startswith("| "):
            label = line.split("|")[1].strip()
            assert any(f", {label}, " in fault for fault in found), (found, line)
            seen |= {name for name in names if name in found[0]}
        elif line.strip().startswith("value:"):
            assert "metadata, " in found[0] and ".value says" in found[0], found
    assert seen == set(names)


def test_every_measured_number_of_run_json_is_caught_when_it_is_changed(published):
    of, repository = published
    claims = read_claims(download(str(repository)))
    assert not module._numbers(claims).faults
    truth, tried = claims.said, 0
    for part in IN_RUN_JSON[of]:
        for path in _leaves(truth[part], (part,)):
            forged = copy.deepcopy(truth)
            inner = forged
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] += 0.001 if isinstance(inner[path[-1]], float) else 1
            claims.said = forged
            name = ".".join(map(str, path))
            if path[:2] == ("split", "seed"):
                continue  # it isn't measured; recipe.split.seed is compared
            assert any(name in fault for fault in module._numbers(claims).faults), name
            tried += 1
    assert tried > 100
    for path, value in {("data", "images"): 1, ("data", "groups"): 1, ("model", "parameters"): 1}.items():
        claims.said = copy.deepcopy(truth)
        claims.said[path[0]][path[1]] += value
        assert any(".".join(path) in fault for fault in module._numbers(claims).faults)


def _leaves(content, path=()):
    """The place of every number in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)
