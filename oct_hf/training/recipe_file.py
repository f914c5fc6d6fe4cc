"""Reads recipes: YAML files, overrides of the command line, and the recipes that come with the package.

A key or value that can't be right is an error that names it and the nearest valid one, because a misspelt
`lerning_rate` silently ignored costs a day.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from oct_hf.data.catalog import CATALOG
from oct_hf.errors import RecipeError, did_you_mean
from oct_hf.packaged import packaged
from oct_hf.training.contradictions import contradictions
from oct_hf.training.recipe import (
    AdversarialRecipe,
    CoTeachingRecipe,
    DataRecipe,
    EnsembleRecipe,
    HeadRecipe,
    PretrainRecipe,
    Recipe,
    SemiRecipe,
    TeacherRecipe,
)
from oct_hf.untrusted import yaml_of

_MOST_SHOWN = 100  # characters of a value in a message


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a YAML file, or the name of a recipe that comes with the package (`demo`).
        overrides: `key=value` strings; the key is dotted (`train.epochs=3`) or, where only one section has it, bare.

    Raises:
        RecipeError: no such recipe, broken YAML, an unknown key or an ill-typed value.
    """
    path = _find(str(source))
    try:
        content = yaml_of(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, found {type(content).__name__}")
    content.setdefault("name", path.stem)
    for override in overrides:
        _override(content, override)
    return make_recipe(content, str(path))


def change_recipe(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """A recipe with other values under dotted keys.

    Raises:
        RecipeError: an unknown key or an ill-typed value.
    """
    content = recipe.to_dict()
    for key, value in values.items():
        *sections, last = whole_key(key).split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return make_recipe(content)


def whole_key(key: str) -> str:
    """The dotted key that a bare one stands for.

    Raises:
        RecipeError: no such key, or more than one.
    """
    places = _keys().get(key)
    if not places:
        raise RecipeError(f'no recipe key "{key}"{did_you_mean(key, _keys())}')
    if key in places:
        return key
    place, *others = places
    if others:
        raise RecipeError(f'"{key}" may mean {" or ".join(places)}; write the whole key')
    return place


def recipe_keys() -> list[str]:
    """Every dotted key."""
    return sorted(key for key in _keys() if "." in key or _keys()[key] == (key,))


def make_recipe(content: dict, where: str = "recipe") -> Recipe:
    """The recipe that a mapping describes.

    Raises:
        RecipeError: all its faults in one line.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_python(content)
    except ValidationError as error:
        faults = dict.fromkeys(_fault(item) for item in error.errors())
        raise RecipeError(f"{where}: " + "; ".join(faults)) from None
    faults = contradictions(recipe)
    labels = recipe.data.labels or ()
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        faults.append(f"data.labels: {', '.join(twice)} stands there twice")
    if faults:
        raise RecipeError(f"{where}: " + "; ".join(faults))
    if recipe.ensemble:  # whatever stands there: its members are all that it starts from
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, base="ensemble", weights="random"))
    return dataclasses.replace(recipe, data=_described(recipe.data))


def _described(data: DataRecipe) -> DataRecipe:
    """What the catalogue knows of a public set, in the places that the recipe leaves open."""
    row = CATALOG.get(data.name)
    if row is None:
        return data
    known = {key: getattr(data, key) or getattr(row, key) for key in ("title", "homepage", "license", "citation")}
    grouped_by = row.grouped_by if data.grouped_by == "patient" else data.grouped_by
    if not row.patients:
        grouped_by = "near-duplicate group"
    return dataclasses.replace(data, **known, grouped_by=grouped_by)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in packaged("recipes").glob("*.yaml"))


def _find(source: str) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.exists():
            raise RecipeError(f"{path}: no such recipe file")
        return path
    built_in = packaged("recipes") / f"{source}.yaml"
    if not built_in.exists():
        names = recipe_names()
        raise RecipeError(
            f'no recipe "{source}"{did_you_mean(source, names)}; there are {", ".join(names)}, or give a .yaml file'
        )
    return built_in


# sections that may be missing; their keys are always written whole
_OPTIONAL = {
    "pretrain": PretrainRecipe,
    "teacher": TeacherRecipe,
    "semi": SemiRecipe,
    "co_teaching": CoTeachingRecipe,
    "adversarial": AdversarialRecipe,
    "head": HeadRecipe,
    "ensemble": EnsembleRecipe,
}


@cache
def _keys() -> dict[str, tuple[str, ...]]:
    """Every dotted key, and where each bare one may stand."""
    keys: dict[str, tuple[str, ...]] = {}
    for top in dataclasses.fields(Recipe):
        section = top.default_factory if dataclasses.is_dataclass(top.default_factory) else _OPTIONAL.get(top.name)
        inner = [f"{top.name}.{f.name}" for f in dataclasses.fields(section)] if section else [top.name]
        if top.name in _OPTIONAL:
            keys[top.name] = (top.name,)  # teacher=null
        for dotted in inner:
            keys[dotted] = (dotted,)
            bare = dotted.split(".")[-1]
            if bare != dotted and top.name not in _OPTIONAL:
                keys[bare] = (*keys.get(bare, ()), dotted)
    return keys


def _override(content: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise RecipeError(f'"{text}" is not key=value')
    parts = (key if key.startswith("data.columns.") else whole_key(key)).split(".")
    for part in parts[:-1]:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise RecipeError(f"{'.'.join(parts)}: {part} is no section")
    content[parts[-1]] = value_of(value)


def value_of(text: str) -> Any:
    """What a text on the command line means as YAML; the text itself where it is none."""
    try:
        return yaml_of(text)
    except yaml.YAMLError:
        return text


def _is_type_name(part: str) -> bool:
    # pydantic names the branch of a union that failed, beside the keys
    return part in ("bool", "str", "int", "float") or part.startswith(("function-", "literal[", "dict[", "tuple["))


def _fault(item: Any) -> str:
    place = [str(part) for part in item["loc"] if not _is_type_name(str(part))]
    key = ".".join(place) or "recipe"
    if item["type"] == "unexpected_keyword_argument":
        section = ".".join(place[:-1])
        known = [k.split(".")[-1] for k in _keys() if k.startswith(section + ".") and section] or [
            f.name for f in dataclasses.fields(Recipe)
        ]
        return f'unknown key "{key}"{did_you_mean(place[-1], known)}'
    found = item.get("input")
    known = re.findall("'([^']+)'", item["ctx"]["expected"]) if item["type"] == "literal_error" else ()
    shown = repr(found)
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}, found {shown}{did_you_mean(found, known)}"
