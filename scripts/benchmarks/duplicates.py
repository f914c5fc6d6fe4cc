"""Near-duplicate search: seconds, recall and precision in sets of 1,000 to 100,000 phantoms, half of them copies."""

import json
import subprocess
import sys
from pathlib import Path

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
