"""Publishing to a Hub on this machine: requests, bytes, seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.material import PAIRS, median, small_run


def benchmark_push(run: Path | None, scratch: Path) -> dict:
    """`oct-hf publish` of EfficientNetV2-B0 to a Hub on this machine, twice: whole processes, and what they send."""
    from oct_hf import serving
    from oct_hf.hub.local import create_app
    from oct_hf.hub.local.accounts import User

    run = run or small_run(scratch)
    taken = serving.take_port(0)
    address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    hub = create_app(scratch / "hub", {"hf_benchmark": User("benchmark")}, address)
    requests, sent = [], []

    async def counted(scope, receive, send):
        async def count():
            message = await receive()
            sent.append(len(message.get("body", b"")))
            return message

        if scope["type"] == "http" and scope["path"] != "/api/agent-harnesses":  # huggingface_hub's own, once a day
            requests.append(f"{scope['method']} {scope['path']}")
        await hub(scope, count, send)

    clean = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment = {**clean, "HF_ENDPOINT": address, "HF_TOKEN": "hf_benchmark", "HF_HOME": str(scratch / "home")}
    command = [Path(sys.executable).with_name("oct-hf"), "publish", run, "--repo"]
    result = {"repository_mb": round(sum(p.stat().st_size for p in (run / "model").rglob("*.*")) / 1e6, 2)}
    seconds = {"first": [], "second": []}
    with serving.running(counted, taken):
        for number in range(PAIRS):
            for push, times in seconds.items():
                if push == "first":
                    for file in (scratch / "hub" / "large").iterdir():
                        file.unlink()
                requests.clear()
                sent.clear()
                began = time.perf_counter()
                subprocess.run([*command, f"benchmark/r{number}"], env=environment, capture_output=True, check=True)
                times.append(time.perf_counter() - began)
                result[f"{push}_requests"] = len(requests)
                result[f"{push}_bytes"] = sum(sent)
                result[f"{push}_large_files"] = sum(request.startswith("PUT") for request in requests)
                result[f"{push}_s"] = median(times)
    return result
