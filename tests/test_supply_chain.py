"""What is installed beside the package: pins, hashes, licences, bounds; and the workflow that makes a release of it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP / "scripts"))
import supply_chain  # noqa: E402

PROMISE = pytest.mark.promise("Every pinned dependency has a known, allowed licence and a hash, and no address.")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = (TOP / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")


@PROMISE
def test_every_pin_has_a_licence_that_is_allowed(capsys, cases):
    assert supply_chain.licences() == 0
    cases.tried += len(supply_chain.pins())
    assert "torchvision" in capsys.readouterr().out


@pytest.mark.parametrize(
    "said, fine",
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0)", False),
        ("", False),
        ("UNKNOWN", False),
    ],
)
def test_a_licence_is_allowed_where_each_part_of_it_is(said, fine):
    assert supply_chain.allowed(said) is fine


@PROMISE
def test_the_hashes_are_of_the_pins_and_name_no_place(cases):
    lines = [line for line in supply_chain.HASHES.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    cases.tried += len(lines)
    hashed, pinned = (
        {canonicalize_name(name): version for name, version in supply_chain.pins(path).items()}
        for path in (supply_chain.HASHES, supply_chain.CONSTRAINTS)
    )
    assert hashed == pinned
    assert not re.search(r"://|@|^-", supply_chain.CONSTRAINTS.read_text(), re.MULTILINE)


def test_the_pins_are_within_the_bounds_and_the_lowest_versions_are_their_beginnings(capsys):
    pinned = {canonicalize_name(name): version for name, version in supply_chain.pins().items()}
    extras = [one for name, extra in PROJECT["optional-dependencies"].items() for one in extra if name != "release"]
    bounds = [Requirement(one) for one in [*PROJECT["dependencies"], *extras] if not one.startswith("oct-hf")]
    wrong = [str(one) for one in bounds if not one.specifier.contains(pinned[canonicalize_name(one.name)])]
    assert len(bounds) > 50 and not wrong
    supply_chain.lowest()
    lowest = [Requirement(one) for one in capsys.readouterr().out.splitlines()]
    assert {"torch", "transformers", "datasets", "timm", "onnxruntime"} <= {one.name for one in lowest}
    for one in lowest:
        version = str(one.specifier).removeprefix("==")
        assert all(bound.specifier.contains(version) for bound in bounds if bound.name == one.name), one


@pytest.mark.parametrize(
    "told, code, said",
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "no known vulnerability in 1 of 1"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}], 1, "a 1: CVE-1"),
        ([{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": []}], 2, "NOT AUDITED"),
        ([{"name": "a", "skip_reason": "not found"}], 2, "no known vulnerability in 0 of 1"),
        ([], 2, "in 0 of 0"),
    ],
)
def test_an_audit_that_nobody_answered_is_none(capsys, told, code, said):
    """As pip-audit tells it, which ends well where its service knows nothing of any pin."""
    assert supply_chain.judge(told) == code
    assert said in "".join(capsys.readouterr())


def test_a_release_is_tested_audited_and_published_without_a_secret():
    workflow = yaml.safe_load(RELEASE)
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML's "on"
    assert "secrets." not in RELEASE and "password" not in str(jobs) and workflow["permissions"] == {"contents": "read"}
    granted = {name: job.get("permissions", {}) for name, job in jobs.items()}
    assert granted == {"build": {}, "pypi": {"id-token": "write"}, "github": {"contents": "write"}}
    assert jobs["pypi"]["environment"] == "pypi" and (jobs["pypi"]["needs"], jobs["github"]["needs"]) == (
        "build",
        "pypi",
    )
    (publishing,) = [step for step in jobs["pypi"]["steps"] if "pypi-publish" in step["uses"]]
    assert publishing.keys() == {"uses"}  # trusted publishing needs nothing more
    used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
    owners = {name.split("/")[0] for name in used}
    assert owners == {"actions", "pypa"} and all(re.search(r"@(v\d+|release/v1|[0-9a-f]{40})$", name) for name in used)


def test_a_release_makes_what_the_makefile_knows():
    said = [step.get("run", "") for step in yaml.safe_load(RELEASE)["jobs"]["build"]["steps"]]
    targets = [target for line in said if line.startswith("make ") for target in line.split()[1:]]
    assert targets == ["hashed", "test", "audit", "dist", "sbom"]
    for target in (*targets, "test-matrix", "licences"):
        done = subprocess.run(["make", "-n", target], cwd=TOP, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_tag_must_name_the_version():
    import oct_hf

    (line,) = [
        step["run"] for step in yaml.safe_load(RELEASE)["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in str(step)
    ]
    for tag, code in ((f"v{oct_hf.__version__}", 0), ("v99.0", 1)):
        assert (
            subprocess.run(
                ["bash", "-c", line], cwd=TOP, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
            ).returncode
            == code
        )
