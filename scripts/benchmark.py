"""Measures what the README claims of speed and memory, as ratios within one run.

python scripts/benchmark.py [data] [training] [serving] [startup] [push] [evaluation]
    [--data FOLDER] [--run FOLDER] [--out FILE]

Pairs run in turn, each preparation in a process of its own; the median ratio counts. Timings depend on the machine and
on what else it does, so none of them is a test.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

PAIRS = 5

PREPARE = """
import json, os, resource, sys, threading, time
kind, folder, cache = sys.argv[1:]
os.environ["HF_DATASETS_CACHE"] = cache
import datasets
from oct_hf import Preprocessing, prepare
datasets.disable_progress_bars()
small = Preprocessing(224, 224)

def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def watch():
    global most
    while True:
        most = max(most, private())
        time.sleep(0.02)

most = private()
threading.Thread(target=watch, daemon=True).start()
if kind == "shards":
    from oct_hf.data.oct import builder_of
    from oct_hf.data.prepared import write_prepared
elif kind == "an epoch from shards":
    from oct_hf.data.stream import StreamedPixels
elif kind == "an epoch":
    from oct_hf.data.pixels import Pixels
started = time.perf_counter()
if kind == "oct_hf":
    n = len(prepare("folder", folder, cache)[0])
elif kind == "shards":
    n = write_prepared(builder_of("folder", folder, cache), folder + " shards")["images"]
elif kind == "an epoch from shards":
    n = sum(1 for _ in StreamedPixels(prepare("parquet", folder + " shards", cache, stream=True)[0], small))
elif kind == "an epoch":
    pixels = Pixels.from_dataset(prepare("folder", folder, cache)[0], small)
    n = sum(1 for row in range(len(pixels)) if len(pixels[row]))
else:
    n = len(datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=cache)["train"])
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"images": n, "seconds": seconds, "peak_mb": peak, "private_mb": most}))
"""


WRITE = """
import json, sys
from pathlib import Path
import torch
from oct_hf import OCTForImageClassification, Preprocessing
from oct_hf.inference.export import ONNX_FILE, write_onnx
folder = Path(sys.argv[1])
torch.manual_seed(0)
labels = ["CNV", "DME", "DRUSEN", "NORMAL"]
model = OCTForImageClassification.from_timm("tf_efficientnetv2_b0", labels, image_size=224).eval()
model.save_pretrained(folder)
preprocessing = Preprocessing.from_pretrained_cfg(model.config.pretrained_cfg)
(folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict()))
write_onnx(model, folder / ONNX_FILE)
"""


def benchmark_data(folder: Path | None, scratch: Path) -> dict:
    """Preparation with every image decoded and checked, against `datasets`' imagefolder, which copies the files.

    And the peak memory of 1,000 and of 100,000 images: preparing them, writing them as shards (of the process that
    hands out the work), and an epoch of them with and without shards. Private memory is what a process can't do
    without; pages of files that it has mapped the system takes back when it wants them. It needs 20 GB of disk.
    """
    folder_of = {1_000: scratch / "small", 100_000: scratch / "large"}
    sources = _bscans(folder, scratch)
    for count, place in folder_of.items():
        _spread(sources, place, count)
    pairs = []
    for number in range(PAIRS):
        kinds = ("oct_hf", "imagefolder")
        pairs.append([_prepare(kind, folder_of[1_000], scratch / f"{kind}{number}") for kind in kinds])
    result = {
        "images": pairs[0][0]["images"],
        "oct_hf_images_per_s": _median(p[0]["images"] / p[0]["seconds"] for p in pairs),
        "imagefolder_images_per_s": _median(p[1]["images"] / p[1]["seconds"] for p in pairs),
        "speed_ratio": _median(p[1]["seconds"] / p[0]["seconds"] for p in pairs),
        "speed_ratios": [round(p[1]["seconds"] / p[0]["seconds"], 3) for p in pairs],
    }
    for kind in ("oct_hf", "shards", "an epoch from shards", "an epoch"):
        few, many = (_prepare(kind, place, scratch / f"cache {count}") for count, place in folder_of.items())
        result[kind] = {
            "private_mb": {"1,000": round(few["private_mb"]), "100,000": round(many["private_mb"])},
            "private_ratio": round(many["private_mb"] / few["private_mb"], 3),
            "with_mapped_files_mb": {"1,000": round(few["peak_mb"]), "100,000": round(many["peak_mb"])},
            "images_per_s": round(many["images"] / many["seconds"]),
        }
    return result


def benchmark_training(scratch: Path, image_size: int = 224, batch_size: int = 32, batches: int = 8) -> dict:
    """The Trainer, from uint8 pictures with augmentation, against bare steps on tensors in memory."""
    import numpy as np
    import torch
    from torch.nn import functional
    from transformers import TrainerCallback

    from oct_hf import OCTForImageClassification, OCTTrainer, Preprocessing, draw_phantom
    from oct_hf.data.pixels import Pixels
    from oct_hf.data.transforms import Augmentation
    from oct_hf.evaluation.oct_metrics import measure
    from oct_hf.runs.run import quiet_libraries
    from oct_hf.training.recipe import TrainRecipe
    from oct_hf.training.trainer import bf16_is_faster, normalise

    class Clock(TrainerCallback):
        """Seconds inside steps, and between them within an epoch; the first step warms up and isn't counted."""

        def __init__(self):
            self.spans, self.waits, self.ended = [], [], None

        def on_epoch_begin(self, *_, **__):
            self.ended = time.perf_counter() if self.spans else None

        def on_step_begin(self, *_, **__):
            self.began = time.perf_counter()
            if self.ended is not None:
                self.waits.append(self.began - self.ended)

        def on_step_end(self, *_, **__):
            self.ended = time.perf_counter()
            self.spans.append(self.ended - self.began)

        def on_evaluate(self, *_, **__):
            self.ended = None

    quiet_libraries()
    names = ["CNV", "DME", "DRUSEN", "NORMAL"]
    labels = np.arange(batch_size * batches) % 4
    drawn = [draw_phantom(names[label], patient=i, height=248, width=256).image for i, label in enumerate(labels)]
    preprocessing = Preprocessing(image_size, image_size)
    images = np.stack([preprocessing.resize(image) for image in drawn])
    hashes = [str(i) for i in range(len(images))]
    train = Pixels(images, labels, hashes, Augmentation("standard"))
    few = Pixels(images[:8], labels[:8], hashes[:8])
    tensors = normalise(torch.from_numpy(images), preprocessing)
    targets = torch.from_numpy(labels)
    bf16 = bf16_is_faster()

    def model():
        torch.manual_seed(0)
        return OCTForImageClassification.from_timm("tf_efficientnetv2_b0", names, image_size=image_size)

    def bare() -> float:
        network = model().to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        for batch in range(-1, batches):  # the first one warms up
            if batch == 0:
                began = time.perf_counter()
            rows = slice(max(batch, 0) * batch_size, (max(batch, 0) + 1) * batch_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(tensors[rows]).logits
            functional.cross_entropy(logits.float(), targets[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
        return batches * batch_size / (time.perf_counter() - began)

    def ours(number: int) -> tuple[float, float]:
        clock = Clock()
        score = lambda probabilities, labels: measure(probabilities, labels, names)  # noqa: E731
        recipe = TrainRecipe(epochs=2, batch_size=batch_size)
        OCTTrainer(model(), recipe, preprocessing, train, few, scratch / f"run{number}", score, [clock]).train()
        # The second epoch: what a long training is made of.
        spans, waits = clock.spans[batches:], clock.waits[-batches:]
        return len(spans) * batch_size / (sum(spans) + sum(waits)), sum(waits) / (sum(spans) + sum(waits))

    pairs = [(bare(), *ours(number)) for number in range(PAIRS)]
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "bf16": bf16,
        "bare_images_per_s": _median(p[0] for p in pairs),
        "trainer_images_per_s": _median(p[1] for p in pairs),
        "speed_ratio": _median(p[1] / p[0] for p in pairs),
        "speed_ratios": [round(p[1] / p[0], 3) for p in pairs],
        "waiting_for_data_share": _median(p[2] for p in pairs),
    }


def benchmark_startup() -> dict:
    """Seconds of a whole process, and whether torch was loaded."""
    script = Path(sys.executable).with_name("oct-hf")
    code = "import sys, time; t = time.perf_counter(); import oct_hf; t = time.perf_counter() - t"
    code += "; print(t, 'torch' in sys.modules)"
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(9))
    imports = [run.stdout.split() for run in runs]
    helps = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run([script, "--help"], capture_output=True, check=True)
        helps.append(time.perf_counter() - began)
    return {
        "import_s": _median(float(seconds) for seconds, _ in imports),
        "import_loads_torch": imports[0][1] == "True",
        "help_s": _median(helps),
    }


def benchmark_push(run: Path | None, scratch: Path) -> dict:
    """`oct-hf publish` of EfficientNetV2-B0 to a Hub on this machine, twice: whole processes, and what they send."""
    from oct_hf import serving
    from oct_hf.hub.local import create_app
    from oct_hf.hub.store import User

    run = run or _small_run(scratch)
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
                result[f"{push}_s"] = _median(times)
    return result


THUMBNAILS = """
import io, sys
import numpy as np
from concurrent.futures import ProcessPoolExecutor
from PIL import Image
from oct_hf.data.duplicates import SIDE, thumbnail
from oct_hf.data.phantom import LABELS, draw

def copy(image, rng):
    height, width = image.shape
    down, right = int(rng.uniform(-.08, .08) * height), int(rng.uniform(-.08, .08) * width)
    moved = np.zeros_like(image)
    part = image[max(0, -down):height - max(0, down), max(0, -right):width - max(0, right)]
    moved[max(0, down):max(0, down) + len(part), max(0, right):max(0, right) + part.shape[1]] = part
    moved = np.clip(moved * rng.uniform(.85, 1.15) + rng.uniform(-8, 8), 0, 255).astype(np.uint8)
    encoded, picture = io.BytesIO(), Image.fromarray(moved)
    if rng.random() < .5:
        scale = rng.uniform(.6, 1.4)
        picture = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    picture.save(encoded, "JPEG", quality=int(rng.integers(50, 96)))
    return np.asarray(Image.open(encoded))

def both(patient):
    image = draw(LABELS[patient % 4], 0, patient, 0, 192, 192).image
    return thumbnail(image) + thumbnail(copy(image, np.random.default_rng([1, patient])))

if __name__ == "__main__":
    count, path = int(sys.argv[1]), sys.argv[2]
    with ProcessPoolExecutor() as pool:
        data = b"".join(pool.map(both, range(count // 2), chunksize=64))
    np.save(path, np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE))
"""

FIND = """
import json, resource, sys, time
import numpy as np
from oct_hf.data.duplicates import find
everything = np.load(sys.argv[1], mmap_mode="r")
before = time.perf_counter()
pairs = find(everything, copies_only=sys.argv[2] == "copies")
seconds = time.perf_counter() - before
true = (pairs.first % 2 == 0) & (pairs.second == pairs.first + 1)
print(json.dumps({
    "s": round(seconds, 1),
    "recall": round(float(true.sum() / (len(everything) / 2)), 4),
    "precision": round(float(true.mean()), 5),
    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""


def benchmark_duplicates(scratch: Path) -> dict:
    """Near-duplicate search: half of the set are phantoms of different patients, the other half one copy of each.

    A copy is shifted by up to 8 %, its contrast changed by up to 15 %, resized by 0.6 to 1.4 every other time, and a
    JPEG of quality 50 to 95. Everything that is no such pair counts as wrong.
    """
    program, result = scratch / "thumbnails.py", {}
    program.write_text(THUMBNAILS)
    for count in (1_000, 10_000, 100_000):
        path = scratch / f"{count}.npy"
        subprocess.run([sys.executable, program, str(count), path], check=True)
        for kind in ("copies", "neighbours too"):
            found = subprocess.check_output([sys.executable, "-c", FIND, path, kind], text=True)
            result[f"{count:,}, {kind}"] = json.loads(found)
        path.unlink()
    return result


SERVE = """
import io, json, sys, warnings
kind, model, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
import numpy as np, torch
from PIL import Image
from transformers import pipeline
from oct_hf import serving
from oct_hf.inference.runtime import serving_predictor, share_cores
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


def benchmark_serving(folder: Path | None, scratch: Path, clients: int = 32, seconds: int = 4) -> dict:
    """The served contract under concurrent clients, against transformers' pipeline behind the same server.

    The pipeline answers one image a call, as it is mostly used; on a thread of its own with torch's threads as they
    are, then with the cores shared as `oct-hf serve` shares them, then in the server's batches too.
    """
    model, images = scratch / "served", scratch / "requests"
    subprocess.run([sys.executable, "-c", WRITE, model], check=True, capture_output=True)
    images.mkdir()
    for number, content in enumerate(_bscans(folder, scratch)[:400]):
        (images / f"{number:04}.jpeg").write_bytes(content)
    kinds = {"onnx": 8, "torch": 8, "pipeline, torch's own threads": 1, "pipeline, cores shared": 1}
    kinds |= {"pipeline, cores shared, batches": 8}
    servers, measured = {}, {kind: [] for kind in kinds}
    try:
        for kind, batch_size in kinds.items():
            command = [sys.executable, "-c", SERVE, kind, model, str(batch_size)]
            servers[kind] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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
        result[kind] = {key: round(_median(run[key] for run in runs), 1) for key in ("per_s", "p50", "p95")}
    for ours in ("onnx", "torch"):
        for theirs in kinds:
            if theirs.startswith("pipeline"):
                pairs = zip(measured[ours], measured[theirs], strict=True)
                ratios = [round(one["per_s"] / other["per_s"], 2) for one, other in pairs]
                result[f"{ours} / {theirs}"] = {"median": _median(ratios), "ratios": ratios}
    return result


def benchmark_evaluation(
    scratch: Path, predictions: int = 10_000, patients: int = 1000, resamples: int = 2000, few: int = 10
) -> dict:
    """Intervals over patients for every metric, against scikit-learn called on the rows of each resample of patients.

    The loop runs on `few` resamples and is taken as many times longer as there are more of them; in it each metric is
    computed once, as `OCTMetrics` does. Then everything that a run says of so many test B-scans, its report with all
    figures, and the comparison of two models with its 10,000 swaps.
    """
    import numpy as np

    from oct_hf.evaluation.assessment import assess, calibrate
    from oct_hf.evaluation.comparison import compare
    from oct_hf.evaluation.intervals import intervals
    from oct_hf.evaluation.oct_metrics import measure
    from oct_hf.evaluation.predictions import Predictions
    from oct_hf.runs.report_page import write_report

    rng = np.random.default_rng(0)
    names = ("CNV", "DME", "DRUSEN", "NORMAL")
    group = rng.integers(0, patients, predictions)
    labels = rng.integers(0, 4, patients)[group]
    scores = rng.normal(size=(patients, 4))[group] + rng.normal(size=(predictions, 4))
    scores[np.arange(predictions), labels] += 2.5
    powers = np.exp(scores)
    probabilities = powers / powers.sum(1, keepdims=True)
    text = lambda values: np.array(list(values), dtype=object)  # noqa: E731
    columns = (text(map(str, range(predictions))), text(map(str, group)), text(names[i] for i in labels))
    given = Predictions(names, *columns, text(["test"] * predictions), probabilities.astype(np.float32))
    rows = [np.flatnonzero(group == patient) for patient in range(patients)]

    def loop() -> float:
        began = time.perf_counter()
        for _ in range(few):
            drawn = np.concatenate([rows[patient] for patient in rng.integers(0, patients, patients)])
            measure(probabilities[drawn], labels[drawn], names)
        return (time.perf_counter() - began) * resamples / few

    def ours() -> float:
        began = time.perf_counter()
        intervals(given, resamples)
        return time.perf_counter() - began

    ours(), loop()  # warm up
    pairs = [(ours(), loop()) for _ in range(PAIRS)]
    run = json.loads((_small_run(scratch) / "run.json").read_text())
    sides = text(["validation"] * (predictions // 4) + ["test"] * (predictions - predictions // 4))
    began = time.perf_counter()
    calibrated, note = calibrate(replace(given, sides=sides))
    facts = assess(calibrated, run["recipe"]["evaluation"], note)
    write_report(scratch / "report.html", run | facts, calibrated, [])
    report = time.perf_counter() - began
    began = time.perf_counter()
    compare(given, given)
    return {
        "evaluation_and_report_s": round(report, 1),
        "predictions": predictions,
        "patients": patients,
        "resamples": resamples,
        "intervals_s": _median(p[0] for p in pairs),
        "scikit_learn_loop_s": _median(p[1] for p in pairs),
        "scikit_learn_resamples_run": few,
        "speed_ratio": _median(p[1] / p[0] for p in pairs),
        "speed_ratios": [round(p[1] / p[0], 1) for p in pairs],
        "comparison_s": round(time.perf_counter() - began, 1),
    }


def _small_run(scratch: Path) -> Path:
    """A finished run of a few phantoms."""
    from oct_hf import finetune
    from oct_hf.training.recipe import load_recipe

    few = ["data.patients=8", "data.scans=1", "model.image_size=64", "train.epochs=1", "train.batch_size=8"]
    finetune(load_recipe("demo", few), scratch / "run")
    return scratch / "run"


def _bscans(folder: Path | None, scratch: Path) -> list[bytes]:
    """JPEGs to prepare: those of a folder, or 200 phantoms of a device's size."""
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
        if not files:
            sys.exit(f"{folder}: no JPEG in it")
        return [file.read_bytes() for file in files]
    import io

    from PIL import Image

    from oct_hf import draw_phantom

    encoded = []
    for number in range(200):
        data = io.BytesIO()
        Image.fromarray(draw_phantom(("CNV", "DME", "DRUSEN", "NORMAL")[number % 4], patient=number).image).save(
            data, "JPEG", quality=75
        )
        encoded.append(data.getvalue())
    return encoded


def _spread(sources: list[bytes], folder: Path, count: int) -> None:
    """`count` different files; bytes behind a JPEG's end change its content hash and not its picture."""
    for number in range(count):
        place = folder / "ABCD"[number % 4] / f"P{number // 20}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpeg").write_bytes(sources[number % len(sources)] + number.to_bytes(4, "little"))


def _prepare(kind: str, folder: Path, cache: Path) -> dict:
    run = subprocess.run([sys.executable, "-c", PREPARE, kind, folder, cache], capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def _median(values) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Runs the parts asked for and prints and writes what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all where none is named")
    parser.add_argument("--data", type=Path, help="folder with JPEG B-scans; phantoms where not given")
    parser.add_argument("--run", type=Path, help="finished run to push; a small one is made where not given")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    given = parser.parse_args()
    parts = ("data", "duplicates", "training", "serving", "startup", "push", "evaluation")
    if strange := set(given.parts) - set(parts):
        parser.error(f"no benchmark {', '.join(strange)}; there are {', '.join(parts)}")
    results = {"cores": os.cpu_count(), "data_from": "a folder of B-scans" if given.data else "phantoms"}
    with tempfile.TemporaryDirectory() as scratch:
        for part in given.parts or parts:
            run = {
                "data": lambda: benchmark_data(given.data, Path(scratch)),
                "duplicates": lambda: benchmark_duplicates(Path(scratch)),
                "training": lambda: benchmark_training(Path(scratch)),
                "serving": lambda: benchmark_serving(given.data, Path(scratch)),
                "startup": benchmark_startup,
                "push": lambda: benchmark_push(given.run, Path(scratch)),
                "evaluation": lambda: benchmark_evaluation(Path(scratch)),
            }[part]
            results[part] = run()
            print(part)
            for key, value in results[part].items():
                print(f"  {key:<28} {value}")
    given.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
