"""Labels and patients as a clinic has them, for the tests of splits."""

import numpy as np


def cohort(patients: int = 60, seed: int = 0) -> tuple[list[str], list[str]]:
    """Labels and patients of a set in which some patients have many images and some two labels."""
    rng = np.random.default_rng(seed)
    labels, ids = [], []
    for patient in range(patients):
        for _ in range(rng.integers(1, 30)):
            label = ["CNV", "DME", "NORMAL"][patient % 3] if rng.random() < 0.95 else "CNV"
            labels.append(label)
            ids.append(f"p{patient}")
    return labels, ids
