"""The parts of the site that the code itself says: every option of a recipe, every command, the public names.

`mkdocs.yml` uses this file as a hook, so that those pages are made when the site is built and can't grow old.

python scripts/reference.py options|commands   (prints the page's generated part)
"""

import ast
import dataclasses
import inspect
import io
import re
import sys
import tokenize
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import griffe
import typer
from mkdocs.structure.files import File

TOP = Path(__file__).parents[1]
# Documents that lie beside docs/, under the names that they have on the site.
BESIDE = {
    "RESULTS.md": "results.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


class LazyNames(griffe.Extension):
    """Tells mkdocstrings where the names of `import oct_hf` come from, which are imported when first used."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.path == "oct_hf":
            from oct_hf import _WHERE

            for name, place in _WHERE.items():
                module, _, attribute = place.partition(":")
                pkg.set_member(name, griffe.Alias(name, f"{module}.{attribute or name}"))


def on_files(files, config):
    """Adds the documents beside docs/."""
    for name, page in BESIDE.items():
        text = (TOP / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_for_the_site(text, "")))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Fills in what the code says, and lets links to files beside docs/ lead to their pages."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    for marker, write in GENERATED.items():
        line = f"<!-- generated: {marker} -->"
        if line in markdown:
            markdown = markdown.replace(line, write())
    return _for_the_site(markdown, "../" * page.file.src_uri.count("/"))


def _for_the_site(text: str, up: str) -> str:
    for name, page in BESIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}(#[^)]*)?\)", rf"]({up}{page}\1)", text)
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')


# --- a recipe's options -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Option:
    """One key of a recipe."""

    key: str
    takes: str
    default: str
    says: str


def recipe_options() -> dict[str, tuple[str, list[Option]]]:
    """By section ("" for what stands at the top): what it is for, and its options, in the order of the code."""
    from oct_hf.training.recipe import Recipe

    sections, top = {}, []
    for name, kind, field, says in _fields(Recipe):
        section = _dataclass_in(kind)
        if section is None:
            top.append(Option(name, _words(kind), _default(field), says))
            continue
        options = [Option(f"{name}.{key}", _words(k), _default(f), s) for key, k, f, s in _fields(section)]
        absent = field.default is None
        text = inspect.getdoc(section) + ("\n\nAbsent unless one of its keys is given." if absent else "")
        sections[name] = (text, options)
    return {"": (inspect.getdoc(Recipe), top), **sections}


def options_page() -> str:
    """Markdown: a heading and a table for each section, the losses' own options, and the augmentations."""
    from oct_hf.data.transforms import PIPELINES, TRANSFORMS
    from oct_hf.training.recipe import LOSSES

    parts = []
    for name, (says, options) in recipe_options().items():
        rows = [(f"`{o.key}`", o.takes, o.default, o.says) for o in options]
        parts += [f"## {name or 'At the top'}", says, _table(("key", "takes", "default", "what it does"), rows)]
    losses = [
        (f"`{loss}`", ", ".join(f"`{k}` {v:g}" for k, v in own.items()) or "none") for loss, own in LOSSES.items()
    ]
    parts += [
        "## Options of the losses",
        "`train.loss_options` sets them; these are the papers' own values, which count without it.",
        _table(("loss", "options"), losses),
        "## Augmentations",
        "`augment` is the name of a pipeline, or a list of transforms: names, or mappings of `name` and options.",
        _table(("pipeline", "transforms"), [(f"`{name}`", _steps(steps)) for name, steps in PIPELINES.items()]),
        _table(("transform", "options"), [(f"`{name}`", _signature(make)) for name, make in TRANSFORMS.items()]),
    ]
    return "\n\n".join(parts)


def _fields(section: type):
    """Of each field: name, type, the dataclass field, and what the comments beside it say."""
    kinds, comments = get_type_hints(section, include_extras=True), _comments(section)
    for field in dataclasses.fields(section):
        yield field.name, kinds[field.name], field, comments.get(field.name, "")


def _comments(section: type) -> dict[str, str]:
    """Field by field, the comment lines right above it and those beside it."""
    code = inspect.getsource(section)
    lines = code.splitlines()
    found = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    said = {}
    for node in ast.parse(code).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            said[node.target.id] = " ".join(found[n] for n in range(first, node.end_lineno + 1) if n in found)
    return said


def _dataclass_in(kind: Any) -> type | None:
    """The section that a field holds, where it holds one."""
    parts = (part for part in (kind, *get_args(kind)) if isinstance(part, type))  # no validator, which is one too
    return next(filter(dataclasses.is_dataclass, parts), None)


def _words(kind: Any) -> str:
    """A type as a person says it."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in parts if part is not type(None)))
    if origin is Annotated:
        return _bounded(_words(parts[0]), parts[1:])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        if Ellipsis not in parts:
            return f"a list of {len(parts)}, each a {_words(parts[0])}"
        return "a list" if parts[0] is str else f"a list, each a {_words(parts[0]).removeprefix('a ')}"
    if origin is dict:
        return "a mapping"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", Any: "a value"}[kind]


def _bounded(word: str, metadata: tuple) -> str:
    said = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    limits = [limit for part in metadata for limit in getattr(part, "metadata", [])]
    bounds = [f"{said[name]} {getattr(limit, name):g}" for limit in limits for name in said if hasattr(limit, name)]
    return " ".join([word, *bounds])


def _default(field: dataclasses.Field) -> str:
    value = field.default if field.default is not dataclasses.MISSING else None
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "must be given"
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value in (None, "", (), {}):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def _steps(steps: list) -> str:
    def one(step) -> str:
        if isinstance(step, str):
            return f"`{step}`"
        options = ", ".join(f"{key} {value}" for key, value in step.items() if key != "name")
        return f"`{step['name']}` ({options})"

    return ", ".join(map(one, steps)) or "nothing"


def _signature(make: Any) -> str:
    return ", ".join(f"`{name}` {p.default}" for name, p in inspect.signature(make).parameters.items())


# --- the command line -------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Markdown: each command with its help, its arguments and its options."""
    from oct_hf.cli import app

    return "\n\n".join(_command(typer.main.get_command(app), "oct-hf"))


def _command(command: Any, name: str) -> list[str]:
    if hasattr(command, "commands"):
        return [part for key, one in command.commands.items() for part in _command(one, f"{name} {key}")]
    arguments, options = [], []
    for given in command.params:
        if given.name == "help" or getattr(given, "hidden", False):
            continue
        said = (given.help or "").strip()
        if given.param_type_name == "argument":
            word = given.metavar or given.name.upper() + ("…" if given.nargs == -1 else "")
            changes = "Changes of the recipe, such as `train.epochs=8`: [every option](options.md)."
            arguments.append((f"`{word}`", said or (changes if "KEY=VALUE" in word else ""), ""))
        else:
            options.append((", ".join(f"`{o}`" for o in (*given.opts, *given.secondary_opts)), said, _shown(given)))
    parts = [f"## {name}", _help(command.help or "")]
    rows = [*arguments, *options]
    return [*parts, _table(("argument", "what it is", "default"), rows)] if rows else parts


def _help(text: str) -> str:
    """A command's help: its examples as code, the rest as it stands."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text).replace("\b", "")):
        example = re.match(r"(?:Examples?: )?(oct-hf .*)", paragraph.strip(), re.DOTALL)
        if example and paragraphs and paragraphs[-1].startswith("```"):
            paragraphs[-1] = f"{paragraphs[-1].removesuffix('```')}{example[1]}\n```"
        else:
            paragraphs.append(f"```console\n{example[1]}\n```" if example else paragraph)
    return "\n\n".join(paragraphs)


def _shown(option: Any) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table that a phone shows row by row (assets/site.css)."""
    cells = [head, ("---",) * len(head), *rows]
    lines = ["| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in row) + " |" for row in cells]
    return "\n".join(['<div class="rows" markdown>', "", *lines, "", "</div>"])


GENERATED = {"options": options_page, "commands": commands_page}

if __name__ == "__main__":
    if sys.argv[1:] not in (["options"], ["commands"]):
        sys.exit(__doc__)
    print(GENERATED[sys.argv[1]]())
