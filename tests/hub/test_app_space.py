"""A Space with the page: refused where it can't work, and run from its own folder as the Hub would."""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml
from faults import free_port

from oct_hf.hub.front_matter import yaml_block


def test_a_space_of_a_model_that_is_on_no_hub_is_refused(run, finished_run, tmp_path):
    code, _, said = run("app", finished_run, "--space", tmp_path / "space")
    assert code == 2 and "oct-hf publish it" in said and not (tmp_path / "space").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    code, _, said = run("app", "you/name", "--space", tmp_path / "full")
    assert code == 2 and "not empty" in said


@pytest.mark.slow
def test_a_space_runs_from_its_own_folder_and_loads_the_published_model(site, finished_run, tmp_path):
    pytest.importorskip("gradio")
    program, environment = [sys.executable, "-m", "oct_hf.cli"], site.environment
    subprocess.run([*program, "publish", finished_run, "--repo", "clinic/app"], env=environment, check=True)
    space = tmp_path / "space"
    subprocess.run([*program, "app", "clinic/app", "--space", space], env=environment, check=True)
    settings = yaml_block((space / "README.md").read_text())
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and settings["models"] == ["clinic/app"]
    assert yaml.safe_dump(settings) and len(settings["short_description"]) <= 60
    assert len((space / "app.py").read_text().splitlines()) < 10
    assert any(line.startswith("onnxruntime") for line in (space / "requirements.txt").read_text().splitlines())
    own = space / "oct_hf" / "inference" / "app" / "parts.html.jinja"
    own.write_text(own.read_text().replace("<header>", "<header id='of-the-space'>"))
    port = free_port()
    alone = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    alone |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    page = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=alone)
    try:
        text = opened(f"http://127.0.0.1:{port}/", page)
        assert "of-the-space" in text, "the package beside app.py is the one that runs"
        forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "clinic-app.hf.space"}
        text = opened(f"http://127.0.0.1:{port}/", page, forwarded)
        assert '"root":"https://clinic-app.hf.space"' in text.replace(" ", "")
    finally:
        page.send_signal(signal.SIGTERM)
        assert page.wait(60) == 0


def opened(address: str, process: subprocess.Popen, headers: dict | None = None) -> str:
    """What is at an address, once somebody listens there."""
    until = time.monotonic() + 300
    while True:
        assert process.poll() is None and time.monotonic() < until
        try:
            return urllib.request.urlopen(urllib.request.Request(address, headers=headers or {})).read().decode()
        except urllib.error.URLError:
            time.sleep(0.2)
