"""What a repository says of its fast files: how large they are, what int8 costs on held-out B-scans, and whether the
others give torch's answers.
"""

from pathlib import Path

import numpy as np

from oct_hf.evaluation.predictions import Predictions
from oct_hf.evaluation.stand_in import compare_cascade, compare_int8, in_words
from oct_hf.inference.cascade import Rule
from oct_hf.inference.export import ONNX_TOLERANCE
from oct_hf.inference.export_gray import probe, torch_probabilities
from oct_hf.inference.fast_files import (
    CASCADE,
    CASCADE_ANSWERS,
    FAST_FILES,
    INT8,
    SMALL_INT8,
    fast_probabilities,
    files_of,
    runtime_is_here,
    runtime_of,
)
from oct_hf.inference.predictor import Predictor

# Mean difference of an int8 file's probabilities on phantoms, which aren't what it was calibrated on.
UNLIKE = 0.2


def answers_of(name: str) -> str:
    """Where the held-out answers of an int8 file lie, beside it."""
    return f"{name.rpartition('.')[0]}.parquet"


def fast_facts(folder: Path, own: Predictions) -> dict[str, dict]:
    """By fast file: its `bytes`, weights included; for int8 what `compare_int8` gives, of a cascade `cascade_facts`.

    Args:
        folder: the repository's.
        own: its `predictions.parquet`.
    """
    found = {}
    for name in FAST_FILES:
        if (folder / name).is_file():
            found[name] = {"bytes": size_of(folder, name)}
            if name in INT8:
                found[name] |= compare_int8(own, Predictions.read(folder / answers_of(name)))
    return found | ({CASCADE: cascade_facts(folder, own)} if (folder / CASCADE).is_file() else {})


def cascade_facts(folder: Path, own: Predictions) -> dict:
    """What a repository says of its cascade.

    Args:
        folder: the repository's.
        own: its `predictions.parquet`.

    Returns:
        `bytes` of the small network, `image_size` and `threshold` of the rule; of the test side `by_small`, the share
        that the small network answers, and what `compare_cascade` gives. The threshold is of the validation side.
    """
    rule = Rule.read(folder / CASCADE)
    own, together = own.of("test"), Predictions.read(folder / CASCADE_ANSWERS).of("test")
    return {
        "bytes": size_of(folder, SMALL_INT8),
        "image_size": rule.small.height,
        "threshold": rule.threshold,
        **compare_cascade(own, together),
        # What the full network answered are its own numbers.
        "by_small": float((own.probabilities != together.probabilities).any(1).mean()),
    }


def size_of(folder: Path, name: str) -> int:
    """Bytes of a fast file and what belongs to it."""
    return sum((folder / part).stat().st_size for part in files_of(name))


def check_fast(folder: Path, facts: dict[str, dict], predictor: Predictor) -> tuple[str, list[str], bool]:
    """Asks each fast file whose runtime is installed.

    Args:
        folder: the repository's.
        facts: by `fast_facts`.
        predictor: its network, on torch.

    Returns:
        what was compared; a line for each untrue thing; and whether nothing could be asked.
    """
    grays = probe(predictor.preprocessing)
    expected = torch_probabilities(predictor.model, predictor.preprocessing, grays)
    notes, faults, asked = [], [], False
    for name, about in facts.items():
        if not about.get("within_rule", True):
            faults.append(f"{name}: {in_words(about)}")
        if name == CASCADE:
            continue  # its small network is another one; verify has its answers, and the checksums of its files
        if not runtime_is_here(name):
            notes.append(f"{name} needs {runtime_of(name)}")
            continue
        asked, off = True, np.abs(fast_probabilities(folder / name, grays) - expected)
        off, allowed = (off[:-1].mean(), UNLIKE) if name in INT8 else (off.max(), ONNX_TOLERANCE)  # the last is noise
        notes.append(f"{name} {off:.0e}")
        if not off <= allowed:
            faults.append(f"{name}: its probabilities are {off:.1e} from oct-hf's, {allowed:.0e} is allowed")
    return f"apart from oct-hf: {', '.join(notes)}", faults, not asked and not faults
