"""Ways to train, on one split: a leaderboard with intervals, costs, and a paired test of each against the main one.

Data and split are those of the first recipe; of the others what the network is and how it learns counts. Each is a
run of its own, so a benchmark that was stopped goes on and what is finished is not trained again.
"""

import csv
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

SPEED_IMAGES = 128  # predicted for the speed; the median of three turns counts
# what of a recipe makes a system
LEARNING = (
    "model",
    "augment",
    "train",
    "pretrain",
    "teacher",
    "semi",
    "co_teaching",
    "adversarial",
    "head",
    "ensemble",
)
COLUMNS = ("balanced_accuracy", "auroc", "ece")
SHOWN_ELSEWHERE = COLUMNS[:2]
ABOUT = ("title", "n", "groups", "grouped_by")  # of the other set


def benchmark_systems(
    names: Sequence[str],
    data: Path | None,
    out: Path,
    folds: int = 1,
    overrides: Sequence[str] = (),
    members: Sequence[str] = (),
    elsewhere: Sequence[str] = (),
    command: str | None = None,
) -> dict:
    """Trains, measures and compares; writes `leaderboard.md`, `.csv`, `.json` and `.png` into `out`.

    A system whose weights can't be had from here starts from random ones, with all layers learning, and its row says
    so: it isn't the system that its authors claim something of.

    Args:
        names: recipes or YAML files, the main one first; those that train alike are run once.
        data: the images, where the main recipe needs any.
        out: folder for the runs and the leaderboard.
        folds: 1 for the recipe's own split, more for a cross-validation.
        overrides: `key=value` for every recipe, or `name:key=value` for one.
        members: systems whose answers are averaged as one more, `ensemble`; on one split alone.
        elsewhere: `data.key=value` of another hospital's set, about which every system is asked; on one split alone.
        command: that a reader may repeat.

    Returns:
        `data`, `elsewhere` (None without), `hardware`, `folds`, `main`, `command`; `systems`, a row each, the best
        first; and `failed`, why by name.

    Raises:
        RecipeError: recipes of one name, members that aren't among them, or what goes on one split alone.
        OCTError: the main recipe can't be run.
    """
    from oct_hf.errors import OCTError, RecipeError, WeightsMissing
    from oct_hf.evaluation.comparison import compare_all
    from oct_hf.evaluation.predictions import Predictions
    from oct_hf.runs.facts import hardware
    from oct_hf.runs.folds import cross_validate
    from oct_hf.runs.run import finetune
    from oct_hf.training.recipe_file import load_recipe

    recipes, places, runs, failed = systems(names, data, overrides), {}, {}, {}
    if (members or elsewhere) and folds > 1:
        raise RecipeError("an ensemble of systems, and another set, are for one split and not for folds")
    other = load_recipe("folder", ["data.name=folder", *elsewhere]).data if elsewhere else None
    if strange := set(members) - set(recipes):
        raise RecipeError(f"{', '.join(sorted(strange))}: to be averaged, but none of the recipes")

    def run_one(recipe, place: Path) -> dict:
        return finetune(recipe, place) if folds == 1 else cross_validate(recipe, place, folds)

    out.mkdir(parents=True, exist_ok=True)
    for name in (*recipes, *(["ensemble"] if members else [])):
        recipe, place = recipes.get(name), out / name
        try:
            if recipe is None:
                recipe = _ensemble(next(iter(recipes.values())), {one: places[one][0] for one in members})
            print(f"{name}: {recipe.model.base} at {recipe.model.image_size} pixels", file=sys.stderr)
            try:
                run = run_one(recipe, place)
            except WeightsMissing as error:
                print(f"{name}: {error}", file=sys.stderr)
                recipe, place = _from_nothing(recipe), out / f"{name}-random"
                run = run_one(recipe, place)
        except OCTError as error:
            failed[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
            if not runs:
                raise  # without the main one there is nothing to compare with
            continue
        recipes[name], runs[name], places[name] = recipe, run, _folders(place, folds)
    main, *others = runs
    named = {
        name: Predictions.read((folders[0] if folds == 1 else folders[0].parent.parent) / FILE)
        for name, folders in places.items()
    }
    compared = compare_all(named)["runs"] if others else {}
    speeds = _speeds(recipes[main], {name: folders[0] for name, folders in places.items()})
    rows = [_row(name, recipes[name], run, places[name], folds, compared.get(name)) for name, run in runs.items()]
    rows = [row | {"images_per_s": speeds[row["name"]]} for row in rows]
    abroad = {name: _elsewhere(folders[0], other) for name, folders in places.items()} if other else {}
    rows = [row | {"elsewhere": abroad.get(row["name"])} for row in rows]
    first = _tested(runs[main], folds)
    result = {
        "data": {"title": first["data"]["title"], "grouped_by": first["data"]["grouped_by"]}
        | {key: first["results"][key] for key in ("n", "groups")},
        "elsewhere": {key: abroad[main][key] for key in ABOUT} if other else None,
        "hardware": hardware(),
        "folds": folds,
        "main": main,
        "command": command,
        "systems": sorted(rows, key=lambda row: -row["balanced_accuracy"]["value"]),
        "failed": failed,
    }
    _write(out, result)
    return result


FILE = "predictions.parquet"


def systems(names: Sequence[str], data: Path | None, overrides: Sequence[str] = ()) -> dict:
    """By name a recipe with the data, split and evaluation of the first; later ones that train alike are left out."""
    from oct_hf.errors import RecipeError
    from oct_hf.training.recipe_file import load_recipe

    path = [f"data.path={json.dumps(str(data))}"] if data else []
    own = {name: load_recipe(name).name for name in names}
    if strange := {one.partition(":")[0] for one in overrides if _is_for_one(one)} - set(own.values()):
        raise RecipeError(f"settings for {', '.join(sorted(strange))}, which is none of the recipes")

    def settings(given: str) -> list[str]:
        for_it = f"{own[given]}:"
        everyone = [one for one in overrides if not _is_for_one(one)]
        return everyone + [one.removeprefix(for_it) for one in overrides if one.startswith(for_it)]

    main, found = load_recipe(names[0], [*settings(names[0]), *path]), {}
    for given in names:
        recipe = load_recipe(given, settings(given))
        parts = {key: getattr(recipe, key) for key in LEARNING}
        if parts not in [{key: getattr(one, key) for key in LEARNING} for one in found.values()]:
            if recipe.name in found:
                raise RecipeError(f"{given}: another recipe is named {recipe.name} and trains otherwise; name it anew")
            found[recipe.name] = dataclasses.replace(
                main, name=recipe.name, description=recipe.description, search={}, **parts
            )
    return found


def _is_for_one(override: str) -> bool:
    """Whether `name:key=value`."""
    return ":" in override.partition("=")[0]


def _from_nothing(recipe):
    """The recipe without the weights that its system starts from, and so without layers that never learn."""
    model = dataclasses.replace(recipe.model, weights="random")
    return dataclasses.replace(recipe, model=model, train=dataclasses.replace(recipe.train, freeze_epochs=0))


def _ensemble(main, members: dict[str, Path]):
    """The recipe that averages models, by the names of their systems, on the data and split of the main one."""
    from oct_hf.training.recipe import EnsembleRecipe, Recipe

    plain = {key: getattr(Recipe(), key) for key in LEARNING}
    averaged = EnsembleRecipe(tuple(str(folder.parent) for folder in members.values()))
    about = f"The mean of the probabilities of {', '.join(members)}."
    return dataclasses.replace(main, name="ensemble", description=about, **plain | {"ensemble": averaged})


def changes(recipe) -> list[str]:
    """What a system's recipe differs in from the one that comes along under its name, as `key=value`."""
    from oct_hf.errors import RecipeError
    from oct_hf.runs.folder import differing
    from oct_hf.training.recipe_file import load_recipe

    try:
        published, given = load_recipe(recipe.name).to_dict(), recipe.to_dict()
    except RecipeError:
        return []
    keys = [key for key in differing(given, published) if key.partition(".")[0] in LEARNING]
    return [f"{key}={reduce(lambda part, name: (part or {}).get(name), key.split('.'), given)}" for key in keys]


def _folders(place: Path, folds: int) -> list[Path]:
    return [place / "model"] if folds == 1 else [place / f"fold-{number}" / "model" for number in range(folds)]


def _tested(run: dict, folds: int) -> dict:
    """Results and intervals of the test side, of one run or of all folds of the first seed."""
    if folds > 1:
        return next(iter(run["by_seed"].values()))
    return {"results": run["results"]["test"], "intervals": run["intervals"], "data": run["data"]}


def _row(name: str, recipe, run: dict, folders: list[Path], folds: int, compared: dict | None) -> dict:
    tested = _tested(run, folds)
    trained = [json.loads((folder / "run.json").read_text(encoding="utf-8"))["training"] for folder in folders]
    row = {"name": name, "base": recipe.model.base, "image_size": recipe.model.image_size}
    if recipe.ensemble:
        row["base"] = f"mean of {len(recipe.ensemble.members)}"
    row |= {"random": recipe.model.weights == "random", "changes": changes(recipe)}
    for key in COLUMNS:
        row[key] = _value(tested["results"][key], tested["intervals"]["metrics"][key])
    return row | {
        # What a stopped training took before it was stopped isn't recorded.
        "train_s": None if any(one["resumed"] for one in trained) else round(sum(one["seconds"] for one in trained), 1),
        "mb": round((folders[0] / "model.safetensors").stat().st_size / 1e6, 1),
        "against_main": None if compared is None else compared["metrics"]["balanced_accuracy"],
    }


def _elsewhere(model: Path, data) -> dict:
    """What another set's B-scans show of a system, with what is to be known of the set."""
    from oct_hf.runs.other_data import evaluate_model

    found = evaluate_model(model, data)
    results = found["results"]
    return {key: _value(results[key], found["intervals"]["metrics"][key]) for key in SHOWN_ELSEWHERE} | {
        **{key: found[key] for key in ("title", "grouped_by")},
        **{key: results[key] for key in ("n", "groups")},
    }


def _value(value: float | None, span: dict) -> dict:
    return {"value": value, "low": span.get("low"), "high": span.get("high")}


def _speeds(recipe, models: dict[str, Path]) -> dict[str, float]:
    """Images a second from files' bytes to probabilities, all systems in turn on the same images."""
    from oct_hf.data.encoded import Encoded
    from oct_hf.inference.predictor import Predictor
    from oct_hf.runs.labelled import load_data

    dataset, _ = load_data(recipe.data)
    encoded = Encoded(dataset)
    images = [encoded[row] for row in range(min(SPEED_IMAGES, len(dataset)))]
    predictors, seconds = (
        {name: Predictor(folder, backend="torch") for name, folder in models.items()},
        {name: [] for name in models},
    )
    for turn in range(4):  # the first warms up
        for name, predictor in predictors.items():
            began = time.perf_counter()
            for _ in predictor.predict(images):
                pass
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: round(len(images) / statistics.median(found), 1) for name, found in seconds.items()}


# --- what a reader gets ----------------------------------------------------------------------------------------------


def _write(out: Path, result: dict) -> None:
    from oct_hf.evaluation.report import can_draw, forest_figure
    from oct_hf.whole import write_json

    write_json(out / "leaderboard.json", result)
    with open(out / "leaderboard.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(_flat(result["systems"][0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_flat(row) for row in result["systems"])
    if can_draw():
        rows = [{"name": row["name"], "unsure": False, **row["balanced_accuracy"]} for row in result["systems"]]
        forest_figure(rows, out / "leaderboard.png")
    (out / "leaderboard.md").write_text(markdown(result), encoding="utf-8")


def markdown(result: dict) -> str:
    """The leaderboard as a table with what one has to know to read it."""
    data, machine = result["data"], result["hardware"]
    other = result["elsewhere"]
    split = "one split" if result["folds"] == 1 else f"{result['folds']} folds, pooled"
    heads = ["system", "network", "balanced accuracy", "AUROC", "ECE", "difference", "p"]
    heads += ["elsewhere: balanced accuracy", "elsewhere: AUROC"] if other else []
    heads += ["training, s", "images/s", "MB"]
    lines = [
        f"# Systems on {data['title']}",
        "",
        f"{data['n']:,} test B-scans of {data['groups']:,} {data['grouped_by']}s ({split}); 95 % intervals over "
        f"{data['grouped_by']}s. Difference: balanced accuracy minus that of {result['main']} on the same B-scans, "
        "with its interval and the p value of a paired permutation test, corrected for the number of systems (Holm).",
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores. Images/s: from a file's bytes to "
        "probabilities.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for row in result["systems"]:
        network = f"{row['base']}, {row['image_size']} px" + (", random weights" if row["random"] else "")
        cells = [row["name"], network, *(_span(row[key]) for key in COLUMNS)]
        cells += _difference(row["against_main"])
        cells += [_span(row["elsewhere"][key]) for key in SHOWN_ELSEWHERE] if other else []
        cells += ["n/a" if row["train_s"] is None else f"{row['train_s']:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{row['images_per_s']:,.0f}", f"{row['mb']:.1f}"]) + " |")
    lines += [
        "",
        "Random weights: those that the system starts from could not be had here, or it starts from none; in the first "
        "case the row is not that system's claim.",
    ]
    if other:
        lines += [
            "",
            f"Elsewhere: {other['n']:,} B-scans of {other['groups']:,} {other['grouped_by']}s of {other['title']}, "
            "from which nothing was learned and by which nothing was chosen.",
        ]
    if changed := [row for row in result["systems"] if row["changes"]]:
        told = "; ".join(f"{row['name']}: {', '.join(row['changes'])}" for row in changed)
        lines += ["", f"Settings that differ from the recipe's: {told}."]
    if result["command"]:
        lines += ["", "```bash", result["command"], "```"]
    lines += ["", *(f"{name} could not be run: {why}" for name, why in result["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def _span(found: dict) -> str:
    if found["value"] is None:
        return "n/a"
    return f"{found['value']:.3f}" + ("" if found["low"] is None else f" ({found['low']:.3f}–{found['high']:.3f})")


def _difference(row: dict | None) -> list[str]:
    if row is None:
        return ["main", ""]
    if "why" in row:
        return [f"n/a: {row['why']}", ""]
    span = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return [f"{row['difference']:+.3f}{span}", f"{row['p_holm']:.4f}"]


def _flat(row: dict) -> dict:
    """A row with one number a column."""
    inside = ("against_main", "elsewhere")
    flat = {key: value for key, value in row.items() if not isinstance(value, dict) and key not in inside}
    flat["changes"] = "; ".join(row["changes"])
    for key in COLUMNS:
        flat |= {f"{key}{end}": value for end, value in _ends(row[key]).items()}
    for key in SHOWN_ELSEWHERE if row["elsewhere"] else ():
        flat |= {f"elsewhere_{key}{end}": value for end, value in _ends(row["elsewhere"][key]).items()}
    against = row["against_main"] or {}
    return flat | {key: against.get(key) for key in ("difference", "low", "high", "p", "p_holm")}


def _ends(found: dict) -> dict:
    return {"": found["value"], "_low": found["low"], "_high": found["high"]}
