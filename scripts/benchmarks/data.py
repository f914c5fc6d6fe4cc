"""Preparing a data set: its speed and memory against `datasets`' imagefolder, with 1,000 and 100,000 images."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.material import PAIRS, WATCH, bscans, median

PREPARE = (
    """
import json, os, resource, sys, time
kind, folder, cache = sys.argv[1:]
os.environ["HF_DATASETS_CACHE"] = cache
import datasets
from oct_hf import Preprocessing, prepare
datasets.disable_progress_bars()
small = Preprocessing(224, 224)
"""
    + WATCH
    + """
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
)


def benchmark_data(folder: Path | None, scratch: Path) -> dict:
    """Preparation with every image decoded and checked, against `datasets`' imagefolder, which copies the files.

    And the peak memory of 1,000 and of 100,000 images: preparing them, by imagefolder too, writing them as shards (of
    the process that hands out the work), and an epoch of them with and without shards. Private memory is what a process
    can't do without; pages of files that it has mapped the system takes back when it wants them. 30 GB of disk.
    """
    folder_of = {1_000: scratch / "small", 100_000: scratch / "large"}
    sources = bscans(folder)
    for count, place in folder_of.items():
        _spread(sources, place, count)
    pairs = []
    for number in range(PAIRS):
        kinds = ("oct_hf", "imagefolder")
        pairs.append([_prepare(kind, folder_of[1_000], scratch / f"{kind}{number}") for kind in kinds])
    result = {
        "images": pairs[0][0]["images"],
        "oct_hf_images_per_s": median(p[0]["images"] / p[0]["seconds"] for p in pairs),
        "imagefolder_images_per_s": median(p[1]["images"] / p[1]["seconds"] for p in pairs),
        "speed_ratio": median(p[1]["seconds"] / p[0]["seconds"] for p in pairs),
        "speed_ratios": [round(p[1]["seconds"] / p[0]["seconds"], 3) for p in pairs],
    }
    for kind in ("oct_hf", "imagefolder", "shards", "an epoch from shards", "an epoch"):
        few, many = (_prepare(kind, place, scratch / f"cache {count}") for count, place in folder_of.items())
        result[kind] = {
            "private_mb": {"1,000": round(few["private_mb"]), "100,000": round(many["private_mb"])},
            "private_ratio": round(many["private_mb"] / few["private_mb"], 3),
            "with_mapped_files_mb": {"1,000": round(few["peak_mb"]), "100,000": round(many["peak_mb"])},
            "images_per_s": round(many["images"] / many["seconds"]),
        }
    return result


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
