"""A running loopback Hub for the tests of publishing, and what clients in processes of their own need to reach it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from oct_hf.hub.local import running
from oct_hf.hub.local.accounts import User

pytest.register_assert_rewrite("bench", "faults")
TOKENS = {"hf_writer": User("clinic"), "hf_reader": User("clinic", write=False), "hf_other": User("other")}


@dataclass(frozen=True)
class Site:
    """A loopback Hub: its folder, its address, its log of (method, path, status), and the environment of clients."""

    root: Path
    address: str
    log: list
    environment: dict


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    """A running loopback Hub with the tokens above; the environment's is the writer's."""
    folder = tmp_path_factory.mktemp("site")
    with running(folder / "hub", TOKENS, port=0) as app:
        address = app.state.address
        hub = {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_writer"}
        homes = {"HF_HOME": str(folder / "home"), "OCT_HF_HOME": str(folder / "oct")}
        yield Site(folder / "hub", address, app.state.log, {**os.environ, **hub, **homes})


@pytest.fixture(scope="module")
def clinic_recipe(tmp_path_factory) -> dict:
    """The recipe of a folder of phantoms that names its patients wherever a clinic might."""
    from data_sets import NAME, named_clinic

    return {
        "name": "clinic",
        "data": {
            "name": "folder",
            "path": str(named_clinic(tmp_path_factory.mktemp("named") / f"{NAME}_clinic")),
            "csv": "patients.csv",
            "columns": {"patient": "who", "eye": "side"},
            "license": "cc-by-nc-4.0",
        },
        "split": {"validation": 0.2, "test": 0.3},
    }


@pytest.fixture(scope="module")
def small_run(finished_run, tmp_path_factory) -> Path:
    """A finished run without its pictures, so that a push has few requests: three large files, the rest small ones."""
    folder = tmp_path_factory.mktemp("faults") / "run" / "model"
    shutil.copytree(finished_run / "model", folder)
    for picture in folder.rglob("*.png"):
        picture.unlink()
    return folder.parent


@pytest.fixture(scope="module")
def bench(small_run, tmp_path_factory):
    """A Hub on this process, a proxy before it, and what pushes the small run through them."""
    from bench import TOKEN, Bench
    from faults import Proxy, free_port

    root = tmp_path_factory.mktemp("bench")
    hub_port, port = free_port(), free_port()
    tokens = {TOKEN: User("clinic")}
    with (
        Proxy(port, hub_port) as proxy,
        running(root / "hub", tokens, hub_port, address=f"http://127.0.0.1:{port}"),
    ):
        bench = Bench(root, small_run, proxy)
        yield bench
        bench.close()
