"""The served contract under concurrent clients, against transformers' pipeline."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.material import ENVIRONMENT, PAIRS, bscans, has, median

SERVE = """
import io, json, sys, warnings
kind, model, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
import numpy as np, torch
from PIL import Image
from transformers import pipeline
from oct_hf import serving
from oct_hf.inference.cores import share_cores
from oct_hf.inference.runtime import serving_predictor
from oct_hf.inference.server import create_app

class Pipeline:
    def __init__(self):
        self.classify = pipeline("image-classification", model=model)
        self.labels, self.batch_size = tuple(self.classify.model.config.id2label.values()), batch_size
    def read(self, source, max_pixels):
        return Image.open(io.BytesIO(source))
    def logits(self, images):
        rows = self.classify(images, batch_size=len(images), top_k=None, function_to_apply="none")
        return np.array([[{a["label"]: a["score"] for a in row}[name] for name in self.labels] for row in rows])

passes, threads = share_cores()
if kind == "pipeline, torch's own threads":
    passes = 1
elif kind.startswith("pipeline"):
    torch.set_num_threads(threads)
classifier = Pipeline() if kind.startswith("pipeline") else serving_predictor(model, kind, batch_size, threads)
taken = serving.take_port(0)
ready = lambda: print(taken.getsockname()[1], flush=True)
serving.run_until_stopped(create_app(classifier, model_threads=passes), taken, ready)
"""


CLIENTS = """
import asyncio, json, statistics, sys, time
from pathlib import Path
folder, port, clients, seconds = sys.argv[1], *map(int, sys.argv[2:])
images = [file.read_bytes() for file in sorted(Path(folder).iterdir())]
header = "POST / HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: %d\\r\\n\\r\\n"
requests = [(header % len(image)).encode() + image for image in images]

async def client(number, until, times):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(requests[number % len(requests)])
        number += clients
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        times.append(time.perf_counter() - began)
    writer.close()

async def measure(seconds):
    times, began = [], time.perf_counter()
    await asyncio.gather(*(client(n, began + seconds, times) for n in range(clients)))
    return times, time.perf_counter() - began

asyncio.run(measure(1))  # warms up
times, took = asyncio.run(measure(seconds))
cuts = statistics.quantiles(times, n=100)
print(json.dumps({"per_s": len(times) / took, "p50": 1000 * cuts[49], "p95": 1000 * cuts[94]}))
"""


def benchmark_serving(folder: Path | None, model: Path, scratch: Path, clients: int = 32, seconds: int = 4) -> dict:
    """The served contract under concurrent clients, against transformers' pipeline behind the same server.

    The pipeline answers one image a call, as it is mostly used; on a thread of its own with torch's threads as they
    are, then with the cores shared as `oct-hf serve` shares them, then in the server's batches too.
    """
    images = scratch / "requests"
    images.mkdir()
    for number, content in enumerate(bscans(folder)[:400]):
        (images / f"{number:04}.jpeg").write_bytes(content)
    ours = ["onnx", "torch", *(name for name in ("openvino-bf16",) if has(model, name))]
    kinds = dict.fromkeys(ours, 8) | {"pipeline, torch's own threads": 1, "pipeline, cores shared": 1}
    kinds |= {"pipeline, cores shared, batches": 8}
    servers, measured = {}, {kind: [] for kind in kinds}
    try:
        for kind, batch_size in kinds.items():
            command = [sys.executable, "-c", SERVE, kind, model, str(batch_size)]
            servers[kind] = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
            )
        ports = {kind: server.stdout.readline().strip() for kind, server in servers.items()}
        for _ in range(PAIRS):
            for kind, port in ports.items():
                command = [sys.executable, "-c", CLIENTS, images, port, str(clients), str(seconds)]
                measured[kind].append(json.loads(subprocess.check_output(command, text=True)))
    finally:
        for server in servers.values():
            server.terminate()
            server.wait()
    result = {"clients": clients, "images": len(list(images.iterdir()))}
    for kind, runs in measured.items():
        result[kind] = {key: round(median(run[key] for run in runs), 1) for key in ("per_s", "p50", "p95")}
    for own in ours:
        for theirs in kinds:
            if theirs.startswith("pipeline"):
                pairs = list(zip(measured[own], measured[theirs], strict=True))
                ratios = [round(one["per_s"] / other["per_s"], 2) for one, other in pairs]
                late = [round(one["p95"] / other["p95"], 2) for one, other in pairs]
                result[f"{own} / {theirs}"] = {
                    "median": median(ratios),
                    "ratios": ratios,
                    "p95_median": median(late),
                    "p95_ratios": late,
                }
    return result
