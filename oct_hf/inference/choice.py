"""Which backend is the fastest here: half a second of noise through each, and the answer remembered for next time.

It depends on the network, the CPU and the libraries' versions, so all of them are part of what is remembered.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from oct_hf.images import Preprocessing
from oct_hf.inference.network import Network
from oct_hf.whole import file_sha256

SECONDS = 0.5  # of measuring, shared by all that are measured
AGREE = 1e-4  # between the probabilities of backends that are said to answer alike


def cache_folder() -> Path:
    """Where the package remembers what it found out about this machine: `OCT_HF_CACHE`, or `~/.cache/oct-hf`."""
    return Path(os.environ.get("OCT_HF_CACHE", Path.home() / ".cache" / "oct-hf")).expanduser()


def fastest(openers: dict[str, Callable[[], Network]], file: Path, preprocessing: Preprocessing) -> Network:
    """The network on the backend that answers the most images a second, measured where it isn't remembered.

    Args:
        openers: by backend, what opens the network on it.
        file: of the repository, of the first of them; its content says which model it is.
        preprocessing: says the size of its input.
    """
    place, key = cache_folder() / "backends.json", _key(tuple(openers), file)
    known = _read(place)
    if known.get(key) in openers:
        return openers[known[key]]()
    networks = {name: opener() for name, opener in openers.items()}
    noise = np.random.default_rng(0).integers(
        0, 256, (16, preprocessing.height, preprocessing.width), np.uint8, endpoint=False
    )
    seconds = SECONDS / len(networks)
    speeds = {name: images_per_second(one, noise[: one.batch], seconds) for name, one in networks.items()}
    expected, *_ = answers = [network.probabilities(noise) for network in networks.values()]
    for name, found in zip(networks, answers, strict=True):
        if not np.abs(found - expected).max() <= AGREE:
            del speeds[name]  # a runtime with a fault of its own, or a file of another model
    best = max(speeds, key=speeds.__getitem__)
    _write(place, _read(place) | {key: best})
    return networks[best]


def images_per_second(network: Network, gray: np.ndarray, seconds: float) -> float:
    """Images a second of as many calls at a time as the network takes, after one that doesn't count.

    Args:
        network: to measure.
        gray: a batch, uint8 `(n, height, width)`.
        seconds: how long; calls that were begun are waited for.
    """
    network.probabilities(gray)

    def work(_) -> int:
        calls = 0
        while time.perf_counter() < until:
            network.probabilities(gray)
            calls += 1
        return calls

    with ThreadPoolExecutor(network.passes) as pool:
        began = time.perf_counter()
        until = began + seconds
        calls = sum(pool.map(work, range(network.passes)))
    return calls * len(gray) / (time.perf_counter() - began)


def _key(names: tuple[str, ...], file: Path) -> str:
    versions = []
    for package in ("oct-hf", "onnxruntime", "openvino", "torch"):
        try:
            versions.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            versions.append("")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [names, file_sha256(file), versions, platform.machine(), _processor(), cores]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _processor() -> str:
    """Its name and what it can, where the system tells."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def _read(place: Path) -> dict[str, str]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _write(place: Path, known: dict[str, str]) -> None:
    """Beside its place, then renamed; what can't be remembered is measured again."""
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        beside.replace(place)
    except OSError:
        beside.unlink(missing_ok=True)
