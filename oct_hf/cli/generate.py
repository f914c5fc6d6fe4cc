"""`oct-hf generate`."""

from pathlib import Path
from typing import Annotated

import typer

from oct_hf.cli.options import AsJson, Data, Overrides, SkipBad, check_place, exit_when_stopped, overrides_of
from oct_hf.cli.printing import print_json, print_table, say, tell
from oct_hf.errors import OCTError


def generate(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE_OR_RUN", help="A recipe, or a run with a generator (gan_semi_supervised).")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    overrides: Overrides = None,
    data: Data = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures of each class.")] = 100,
    image_size: Annotated[int, typer.Option(help="Of a diffusion generator, in pixels: a multiple of 8.")] = 64,
    epochs: Annotated[int, typer.Option(min=1, help="Of its training.")] = 200,
    width: Annotated[int, typer.Option(help="Channels of its finest level: a multiple of 8.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="From noise to a picture.")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="How much a picture shows its class; 1 adds nothing.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Of training and noise.")] = 0,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Generated B-scans of each class, learned from a recipe's training side alone.

    Trains a class-conditional diffusion generator (extra generate), or asks the generator of a
    run that is one (a section adversarial). Pictures that are near-duplicates of training B-scans
    are counted and left out. A training that was stopped goes on. Generator and pictures stay
    where the data may be.

    Example: oct-hf generate octdl --data OCTDL/ --out runs/octdl-generated &&
    oct-hf finetune octdl --data OCTDL/ data.generated=runs/octdl-generated
    """
    check_place(out)
    run = (Path(source) / "run.json").is_file()
    if run and (overrides or data):
        raise OCTError(f"{source} is a run: its generator is asked as it is, so leave out --data and KEY=VALUE")
    from oct_hf.runs.generated import FACTS, SHEET, generate_by_diffusion, generate_from_run

    if run:
        facts = generate_from_run(source, out, images, seed)
    else:
        facts = _diffusion(
            generate_by_diffusion,
            source,
            overrides_of(overrides, data, skip_bad),
            out,
            images,
            {"image_size": image_size, "epochs": epochs, "width": width, "steps": steps, "guidance": guidance}
            | {"seed": seed},
        )
    if as_json:
        print_json(facts)
        return
    _print_facts(facts)
    for name, what in ((FACTS, "all of it"), (SHEET, "some of the pictures"), ("pictures", "a folder a class")):
        tell(f"{out / name}  {what}")


def _diffusion(act, source: str, given: list[str], out: Path, images: int, options: dict) -> dict:
    from pydantic import ValidationError

    from oct_hf.training.diffusion import DiffusionSettings
    from oct_hf.training.recipe_file import load_recipe

    recipe = load_recipe(source, given)
    try:
        settings = DiffusionSettings(**options)
    except ValidationError as error:
        fault = error.errors()[0]
        option = str(fault["loc"][0]).replace("_", "-")
        raise OCTError(f"--{option}: {fault['msg'][0].lower()}{fault['msg'][1:]}, found {fault['input']!r}") from None
    with exit_when_stopped():
        return act(recipe, out, settings, images)


def _print_facts(facts: dict) -> None:
    rows = [
        (name, str(row["drawn"] - row["near_duplicates"]), str(row["near_duplicates"]))
        for name, row in facts["classes"].items()
    ]
    title = f"generated at {facts['image_size']} pixels, learned from {facts['trained_on']['images']:,} B-scans"
    print_table(title, ("class", "written", "left out: near-duplicates of training B-scans"), rows)
    compared = facts["compared"]
    if "why" in compared:
        say(f"not compared with real ones: {compared['why']}")
        return
    rows = [
        (
            f"{row['one']} ({row['n']}), {row['other']} ({row['m']})",
            *(_number(row[key]) for key in ("kernel", "frechet")),
        )
        for row in compared["pairs"]
    ]
    print_table(f"features: {compared['features']}", ("pictures", "kernel distance", "Fréchet distance"), rows)
    tell("read the kernel distance: the Fréchet distance of few pictures is too large; real against real is the scale")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"
