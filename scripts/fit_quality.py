"""Fits the gate and the quality score of `oct_hf/data/quality.py`, and says how well the gate does on other pictures.

python scripts/fit_quality.py --oct NEH --other PICTURES [--test-oct OCT2017 ...] [--write]

B-scans of one hospital and phantoms are told from pictures of anything else; half of these, with what is drawn here
(noise, text, gradients, turned B-scans), is kept for the test. `--write` puts the numbers into the package.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from oct_hf import draw_phantom
from oct_hf.data import quality
from oct_hf.data.phantom import LABELS
from oct_hf.data.shrunken import shrink
from oct_hf.errors import BadImageError
from oct_hf.images import EXTENSIONS, read_image, to_gray
from oct_hf.parallel import in_order

DRAWN = 40  # pictures of each kind that is drawn
REFUSED = 0.002  # share of the B-scans of the fit, seen by a gate that didn't learn from them, below the threshold


def read(folder: Path) -> list[tuple[str, np.ndarray]]:
    """Name and gray levels of every picture below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)

    def one(path: Path):
        try:
            return to_gray(read_image(path))
        except BadImageError:
            return None

    return [
        (path.relative_to(folder).as_posix(), picture) for path, picture in in_order(one, files) if picture is not None
    ]


def changed(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A B-scan as another device or export may have it: cut, brighter, blurred, noisier, with a wedge or a margin."""
    height, width = picture.shape
    top, left = random.integers(0, height // 6 + 1), random.integers(0, width // 3 + 1)
    picture = picture[
        top : height - random.integers(0, height // 6 + 1), left : width - random.integers(0, width // 3 + 1)
    ]
    if random.random() < 0.5:
        picture = picture[:, ::-1]
    values = 255 * (picture / 255.0) ** random.uniform(0.6, 1.7) * random.uniform(0.6, 1.3) + random.uniform(-15, 25)
    if random.random() < 0.4:
        values = ndimage.gaussian_filter(values, random.uniform(0, 3))
    if random.random() < 0.5:
        values = values * random.gamma(1 / 0.05, 0.05, values.shape) + random.normal(
            0, random.uniform(0, 12), values.shape
        )
    values = np.clip(values, 0, 255)
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]]
    if random.random() < 0.35:
        steep = random.uniform(-0.3, 0.3) * values.shape[0] / values.shape[1]
        values[rows < steep * (columns - values.shape[1] / 2) + values.shape[0] * random.uniform(0, 0.12)] = 255
    if random.random() < 0.25:
        edge = [
            (random.integers(0, values.shape[axis] // 6), random.integers(0, values.shape[axis] // 6))
            for axis in (0, 1)
        ]
        values = np.pad(values, edge, constant_values=random.choice([0, 255]))
    return values.astype(np.uint8)


def drawn(bscans: list[np.ndarray], random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Pictures that nobody photographed, and B-scans turned on their side."""
    font, result = ImageFont.load_default(), []
    for _ in range(DRAWN):
        shape = tuple(random.integers(120, 500, 2))
        noise = random.normal(0, 1, shape)
        white = np.clip(128 + random.uniform(20, 90) * noise, 0, 255)
        cloud = ndimage.gaussian_filter(noise, random.uniform(2, 25, 2), mode="wrap")
        cloud = 255 * (cloud - cloud.min()) / np.ptp(cloud)
        page = Image.new("L", shape[::-1], int(random.choice([0, 255])))
        ink = 255 - page.getpixel((0, 0))
        for line in range(5, shape[0], 14):
            letters = "".join(chr(random.integers(33, 123)) if random.random() > 0.15 else " " for _ in range(80))
            ImageDraw.Draw(page).text((5, line), letters[: random.integers(5, 80)], fill=int(ink), font=font)
        y, x = np.mgrid[: shape[0], : shape[1]]
        ramp = (np.cos(random.uniform(0, 6)) * y / shape[0] + np.sin(random.uniform(0, 6)) * x / shape[1]) * 255 % 256
        bars = 255.0 * (np.sin(x * random.uniform(0.05, 0.5) + y * random.uniform(0, 0.3)) > random.uniform(-0.5, 0.5))
        disc = (np.hypot(y - shape[0] / 2, x - shape[1] / 2) < min(shape) * 0.45) * (90 + 0.5 * cloud)
        turned = np.rot90(bscans[random.integers(len(bscans))])
        flat = np.full(shape, random.integers(0, 256))
        kinds = ("noise", "clouds", "text", "gradient", "bars", "disc", "B-scan on its side", "one gray")
        pictures = (white, cloud, np.asarray(page), ramp, bars, disc, turned, flat)
        result += [(f"drawn/{kind}", p.astype(np.uint8)) for kind, p in zip(kinds, pictures, strict=True)]
    return result


def features(pictures: list[np.ndarray]) -> np.ndarray:
    """`(n, features)`."""
    return np.array([found for _, found in in_order(lambda picture: quality.look(shrink(picture))[0], pictures)])


def fit(positive: np.ndarray, negative: np.ndarray) -> dict:
    """The gate, without its threshold."""
    everything = np.concatenate([positive, negative])
    mean, scale = everything.mean(0), everything.std(0) + 1e-9
    scaled = quality.expanded(np.clip((everything - mean) / scale, -4, 4))
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    model = LogisticRegression(C=0.02, max_iter=5_000, class_weight="balanced").fit(scaled, labels)
    return {"mean": mean, "scale": scale, "weights": model.coef_[0], "intercept": model.intercept_[0]}


def answers(gate: dict, values: np.ndarray) -> np.ndarray:
    """Probabilities `(n,)` that these are B-scans."""
    scaled = np.clip((values - gate["mean"]) / gate["scale"], -4, 4)
    return 1 / (1 + np.exp(-(quality.expanded(scaled) @ gate["weights"] + gate["intercept"])))


def in_test(name: str) -> bool:
    """Half of the other pictures, by their names."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def main() -> None:
    """Fits, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oct", type=Path, required=True, help="B-scans to fit on")
    parser.add_argument("--other", type=Path, required=True, help="pictures of anything else, one folder a kind")
    parser.add_argument("--test-oct", type=Path, nargs="*", default=[], help="B-scans of other hospitals and devices")
    parser.add_argument("--write", action="store_true", help=f"write {quality.NUMBERS.name} of the package")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    bscans = [picture for _, picture in read(given.oct)]
    phantoms = [draw_phantom(LABELS[n % 4], patient=n, scan=0, height=248, width=256).image for n in range(200)]
    more = [changed(bscans[n % len(bscans)], random) for n in range(3 * len(bscans))]
    others = read(given.other)
    train = [picture for name, picture in others if not in_test(name)]
    train += [p[: len(p) // 2 + 60, : p.shape[1] // 2 + 60] for p in train if min(p.shape) > 250]  # and a part of each
    train += [picture for _, picture in drawn(bscans, random)]
    blocks = [features(part) for part in (bscans, more, phantoms)]
    negative = features(train)
    gate = fit(np.concatenate(blocks), negative)

    # What a gate says of B-scans that it didn't learn from: five parts of the files in their order, so by volume.
    parts = np.arange(len(bscans)) * 5 // len(bscans)
    held = np.empty(len(bscans))
    for part in range(5):
        mine = np.tile(parts != part, 3)
        held[parts == part] = answers(
            fit(np.concatenate([blocks[0][parts != part], blocks[1][mine], blocks[2]]), negative),
            blocks[0][parts == part],
        )
    gate["threshold"] = min(0.5, float(np.quantile(held, REFUSED)))

    tests: dict[str, list[np.ndarray]] = {}
    for name, picture in [*((n, p) for n, p in others if in_test(n)), *drawn(bscans, np.random.default_rng(1))]:
        tests.setdefault("/".join(name.split("/")[: 2 if name.startswith("drawn") else 1]), []).append(picture)
    negatives = {name: answers(gate, features(pictures)) for name, pictures in tests.items()}
    everything = np.concatenate(list(negatives.values()))
    report = {
        "threshold": gate["threshold"],
        "fit": {"B-scans": len(bscans), "phantoms": len(phantoms), "others": len(train)},
    }
    unseen = {folder.name: answers(gate, features([p for _, p in read(folder)])) for folder in given.test_oct}
    for name, said in {f"{given.oct.name}, held out": held, **unseen}.items():
        report[name] = {
            "B-scans": len(said),
            "auroc": round(
                float(roc_auc_score(np.r_[np.ones(len(said)), np.zeros(len(everything))], np.r_[said, everything])), 4
            ),
            "refused": round(float((said < gate["threshold"]).mean()), 4),
        }
    report["let through"] = {
        name: f"{int((said >= gate['threshold']).sum())} of {len(said)}" for name, said in negatives.items()
    }
    print(json.dumps(report, indent=2))
    if given.write:
        looks = [quality.look(shrink(picture))[1] for picture in bscans]
        limits = {}
        for name in ("signal", "sharpness"):
            values = np.array([parts[name] for parts in looks])
            low, high = np.quantile(values, 0.01), np.median(values)
            limits[name] = [round(float(low), 4), round(float(high), 4)]
        plain = {key: np.round(value, 5).tolist() for key, value in gate.items()}
        digest = hashlib.sha256(json.dumps([plain, limits]).encode()).hexdigest()[:12]
        quality.NUMBERS.write_text(json.dumps({"version": digest, "score": limits, "gate": plain}) + "\n")


if __name__ == "__main__":
    main()
