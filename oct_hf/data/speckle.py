"""Speckle and smooth noise, fast: crops, at places that an image's own seed picks, of banks drawn once a process.

Phantoms are drawn with it and training pictures roughened by it; drawing gammas pixel by pixel costs ten times as much.
"""

from functools import cache, reduce
from operator import add

import cv2
import numpy as np


def speckle(rng: np.random.Generator, looks: int, height: int, width: int) -> np.ndarray:
    """Fully developed speckle averaged over 1 to 31 looks, float32 (height, width), mean 1, std looks**-0.5.

    One look's intensity is exponential and the average of L independent looks gamma of shape L (Goodman, Speckle
    Phenomena in Optics, 2007; Schmitt, Xiang and Yung, "Speckle in optical coherence tomography", J Biomed Opt, 1999).
    Drawing gammas is slow, so the average is a sum of crops, at random places, of banks of 1, 2, 4, 8 and 16 looks.
    """
    bits = [bit for bit in range(5) if looks >> bit & 1]
    return reduce(add, (crop(banks()[0][bit], rng, height, width) * np.float32(2**bit / looks) for bit in bits))


@cache
def banks() -> tuple[list[np.ndarray], np.ndarray]:
    """Speckle of 1, 2, 4, 8 and 16 looks in a Spectralis image's grain, and the choroid's texture (mean 0, std 1)."""
    noise = np.random.default_rng(1999).standard_normal((4, 1024, 1024), dtype=np.float32)
    real, imaginary = (cv2.GaussianBlur(part, (0, 0), sigmaX=0.65, sigmaY=0.95) for part in noise[:2])
    one = real**2 + imaginary**2
    looks = [one / one.mean()]
    for shift in (389, 211, 97, 341):  # each sum of shifts is another, so that no pixel meets itself
        looks.append((looks[-1] + np.roll(looks[-1][::-1], (shift, 2 * shift), (0, 1))) / 2)
    vessels, septa = (
        cv2.GaussianBlur(n, (0, 0), sigmaX=s, sigmaY=1.3 * s) for n, s in ((noise[2], 5), (noise[3], 2.5))
    )
    texture = np.tanh(vessels / vessels.std() + 0.5) + 0.7 * septa / septa.std()
    return looks, (texture - texture.mean()) / texture.std()


def crop(bank: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A crop of a bank at a random place, flipped at random, (height, width); a small bank repeats."""
    if height > len(bank) or width > len(bank):
        bank = np.tile(bank, (1 + height // len(bank), 1 + width // len(bank)))
    y, x = rng.integers((bank.shape[0] - height + 1, bank.shape[1] - width + 1))
    return np.ascontiguousarray(bank[y : y + height, x : x + width][:: rng.choice((1, -1)), :: rng.choice((1, -1))])


def smooth_noise(rng: np.random.Generator, count: int, width: int, knots: int) -> np.ndarray:
    """Smooth random curves through `knots` random values each, float32 (count, width), about mean 0 and std 1."""
    return cv2.resize(rng.standard_normal((count, knots), np.float32), (width, count), interpolation=cv2.INTER_CUBIC)
