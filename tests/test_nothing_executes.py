"""No code comes out of data: what could run it stands nowhere in the source but where a reason says why it may.

A fault here is a line of the source, found by its syntax tree. A new exception belongs into `ALLOWED`, with its reason.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("oct_hf", "scripts") for path in (ROOT / folder).rglob("*.py"))

# Modules whose import is a way to run what a file holds, or to start a program.
UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pickletools"}
PROGRAMS = {"subprocess", "pty", "commands"}
# Ways to ask other machines.
ASKING = {"requests", "urllib", "httpx", "aiohttp", "ftplib", "telnetlib", "xmlrpc"}
XML = {"xml", "lxml", "defusedxml"}
WATCHED = UNPICKLING | PROGRAMS | ASKING | XML
CALLS = {"eval", "exec", "compile", "__import__"}
OF_MODULES = {
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.export.load",
    "importlib.import_module",
    "import_module",
    "shutil.unpack_archive",
}

# Arguments that may have this value alone, also where they stand in a dictionary.
RISKY = {"trust_remote_code": False, "weights_only": True, "allow_pickle": False, "shell": False}

# Where one of these may stand, and why nothing of a stranger gets there.
ALLOWED = {
    ("oct_hf/hub/files.py", "pickletools"): "takes a pickle apart to refuse it; runs none of it",
    ("oct_hf/untrusted.py", "xml"): "what declares a type or entities is refused before it is parsed",
    ("oct_hf/parallel.py", "joblib"): "functions and results between processes of this program",
    ("oct_hf/data/fetch.py", "requests"): "downloads the public sets, from the addresses of the catalogue",
    ("oct_hf/hub/local/bare_git.py", "subprocess"): "git, with a list of arguments",
    ("oct_hf/hub/page/runtime.py", "subprocess"): "npm, with a list of arguments; what it brings must have its SHA-256",
    ("oct_hf/data/volumes/decoding_apart.py", "subprocess"): "this program again, to decode where a crash does no harm",
    ("oct_hf/inference/export_torch.py", "torch.export.load"): "the file that was written a moment before",
    ("oct_hf/__init__.py", "importlib.import_module"): "names of the package's own table",
    ("oct_hf/data/volumes/__init__.py", "import_module"): "readers of the package's own table",
    ("oct_hf/hub/patience.py", "importlib.import_module"): "the library whose client is already in use",
    ("oct_hf/hub/local/bare_git.py", "urllib"): "quotes a name; asks nobody",
    (
        "oct_hf/hub/card.py",
        "templates that don't escape",
    ): "Markdown, for which `plain` escapes what comes from outside",
}


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def is_constant(node: ast.AST | None, value) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def call_fault(call: ast.Call) -> str | None:
    """What of a call can run code that came as data."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    name = dotted(call.func)
    if name in CALLS or name in OF_MODULES:
        return name
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        return "torch.load without weights_only=True"
    for key, harmless in RISKY.items():
        if key in given and not is_constant(given[key], harmless):
            return f"{key} that may be {not harmless}"
    if name.endswith(".extractall") or (name.endswith(".extract") and "filter" not in given and len(call.args) > 1):
        return "an archive unpacked without a filter"
    if name.endswith("Environment") and "autoescape" not in given:
        return "templates that don't escape"
    # transformers' Auto classes run a repository's own code when they are asked to, and ask where nothing is said.
    if (
        name.startswith("Auto")
        and name.endswith(".from_pretrained")
        and not ("trust_remote_code" in given or None in given)
    ):
        return f"{name} that doesn't say trust_remote_code"
    return None


def faults_of(source: str) -> list[tuple[int, str]]:
    tree = ast.parse(source)
    found = [(line, module) for line, module in imported(tree) if module in WATCHED]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (fault := call_fault(node)):
            found.append((node.lineno, fault))
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in RISKY and not is_constant(value, RISKY[key.value]):
                    found.append((node.lineno, f"{key.value} in a dictionary"))
    return found


@pytest.mark.promise("No file that is read as a model or as data can run code.")
def test_nothing_in_the_source_runs_what_it_reads(cases):
    seen, faults = set(), []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        cases.tried += 1
        for line, what in faults_of(path.read_text(encoding="utf-8")):
            if name.startswith("scripts/") and what in PROGRAMS:
                continue  # they show commands and measure programs, on a developer's machine
            seen.add((name, what))
            if (name, what) not in ALLOWED:
                faults.append(f"{name}:{line}: {what}")
    assert not faults, "\n".join(faults)
    assert not (unused := ALLOWED.keys() - seen), f"exceptions that nothing needs any more: {sorted(unused)}"
    assert len(SOURCES) > 200


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "archive.extractall(folder)",
        "archive.extract(name, folder)",
        "jinja2.Environment(loader=loader)",
        "requests.get(url); import requests",
    ],
)
def test_each_of_these_would_be_found(line):
    assert faults_of(line)


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "re.compile(text)",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "np.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "archive.extract(entry, folder, filter='data')",
    ],
)
def test_and_none_of_these(line):
    assert not faults_of(line)
