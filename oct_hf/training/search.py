"""The search space of `oct-hf tune`: recipe keys, and for each a range or a list of choices.

search:
  train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  model.dropout: {low: 0.0, high: 0.5}
  train.class_weights: [null, auto]

Whether a range is of whole numbers is what the recipe's own value says, so `{low: 1, high: 3}` of a learning rate is
not three values.
"""

from pathlib import Path
from typing import Any

import yaml

from oct_hf.errors import RecipeError, did_you_mean
from oct_hf.training.recipe import Recipe
from oct_hf.training.recipe_file import change_recipe, whole_key
from oct_hf.untrusted import yaml_of

SEARCHED = ("model", "train", "augment")  # the sections that a search may change: never what is measured, nor on whom
USUAL = {
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
    "train.label_smoothing": {"low": 0.0, "high": 0.2},
    "model.dropout": {"low": 0.0, "high": 0.5},
}
_RANGE = ("low", "high", "log")


def read_space(file: str | Path) -> dict[str, Any]:
    """The space in a YAML file, at its top or under `search:`.

    Raises:
        RecipeError: it isn't there, or is no mapping.
    """
    try:
        content = yaml_of(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file}: no YAML that can be read ({' '.join(str(error).split())})") from None
    space = content.get("search", content) if isinstance(content, dict) else content
    if not isinstance(space, dict) or not space:
        raise RecipeError(f"{file}: a search space is a mapping of recipe keys to ranges or lists")
    return space


def check_space(space: dict[str, Any], recipe: Recipe) -> dict[str, dict | list]:
    """The space with whole keys and whole ranges, in the order of the keys.

    Args:
        space: by recipe key `{low, high}` or `{low, high, log}`, or a list of choices.
        recipe: which the values go into.

    Raises:
        RecipeError: a key that can't be searched, or values that the recipe can't take.
    """
    checked = {}
    for given, wanted in space.items():
        key = whole_key(str(given))
        if key.split(".")[0] not in SEARCHED or key == "train.seed":
            raise RecipeError(
                f"search: {key} can't be searched; only what is under {', '.join(SEARCHED)}, not the seed"
            )
        checked[key] = _choices(key, wanted) if isinstance(wanted, list) else _range(key, wanted)
        for value in checked[key] if isinstance(wanted, list) else (checked[key]["low"], checked[key]["high"]):
            whole = isinstance(_now(recipe, key), int) and not isinstance(wanted, list)
            if whole and value != int(value):
                raise RecipeError(f"search: {key} is a whole number, found {value}")
            try:
                change_recipe(recipe, {key: value})
            except RecipeError as error:
                raise RecipeError(f"search: {error}") from None
    return dict(sorted(checked.items()))


def suggest(trial, space: dict[str, dict | list], recipe: Recipe) -> dict[str, Any]:
    """A value for each key, as an optuna trial proposes it."""
    values = {}
    for key, wanted in space.items():
        if isinstance(wanted, list):
            values[key] = trial.suggest_categorical(key, wanted)
        elif isinstance(_now(recipe, key), int):
            values[key] = trial.suggest_int(key, int(wanted["low"]), int(wanted["high"]), log=wanted["log"])
        else:
            values[key] = trial.suggest_float(key, wanted["low"], wanted["high"], log=wanted["log"])
    return values


def _choices(key: str, wanted: list) -> list:
    if len(wanted) < 2 or not all(value is None or isinstance(value, bool | int | float | str) for value in wanted):
        raise RecipeError(f"search: {key} needs a list of two or more numbers, words or null, found {wanted}")
    return wanted


def _range(key: str, wanted: Any) -> dict:
    if not isinstance(wanted, dict):
        raise RecipeError(f"search: {key} is {{low: …, high: …}} or a list, found {wanted!r}")
    for word in wanted:
        if word not in _RANGE:
            raise RecipeError(
                f'search: {key}: unknown "{word}"{did_you_mean(word, _RANGE)}; there are low, high and log'
            )
    try:
        found = {"low": float(wanted["low"]), "high": float(wanted["high"]), "log": bool(wanted.get("log", False))}
    except (KeyError, TypeError, ValueError):
        raise RecipeError(f"search: {key} needs numbers low and high, found {wanted}") from None
    if not found["low"] < found["high"] or (found["log"] and found["low"] <= 0):
        raise RecipeError(f"search: {key}: low must be below high, and above 0 with log; found {wanted}")
    return found


def _now(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.to_dict()
    for part in key.split("."):
        value = value[part]
    return value
