"""predictions.parquet: the file that every published number is computed from.

One row a B-scan: content hash, group (patient, or pseudonym), true label, side, one probability a class, and what
tells B-scans apart when results are looked at by subgroup. No path and no picture, so it can be published. Of a model
whose outputs are signs, several a picture, which of them are there too (columns `t_…`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from oct_hf.errors import DataError
from oct_hf.evaluation.oct_metrics import OCTMetrics

# What a B-scan may be told apart by: pixels of the file; quality and likeness to B-scans (0 to 1) and mean gray level
# (0 to 255) as `data` measures them; and the device that took it.
TRAITS = {
    "width": pa.int32(),
    "height": pa.int32(),
    "quality": pa.float32(),
    "likeness": pa.float32(),
    "intensity": pa.float32(),
    "device": pa.string(),
}

_COLUMNS = ("hashes", "groups", "labels", "sides", "probabilities")  # that are always there


@dataclass(frozen=True)
class Predictions:
    """What a model answered on B-scans whose label is known.

    Attributes:
        names: the `k` labels, in the order of the model's outputs.
        hashes, groups, labels, sides: `n` strings each.
        probabilities: float32 `(n, k)`.
        eyes: `n` strings, "OD", "OS", "one" where each group is a single eye, or "" where unknown; None where no eye
            of the set is known.
        traits: of each B-scan what `TRAITS` lists, `n` values each; what wasn't recorded is absent.
        truth: float32 `(n, k)` where the outputs are signs: 1 where a sign is there, 0 where it isn't, NaN where nobody
            knows; `labels` are then the diseases. None where the outputs are the labels.
    """

    names: tuple[str, ...]
    hashes: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    sides: np.ndarray
    probabilities: np.ndarray
    eyes: np.ndarray | None = None
    traits: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: np.ndarray | None = None

    def of(self, side: str) -> "Predictions":
        """The rows of one side."""
        return self.rows(self.sides == side)

    def rows(self, chosen: np.ndarray) -> "Predictions":
        """Some of the rows, by a bool mask or by their numbers."""
        columns = {c: getattr(self, c) for c in (*_COLUMNS, "eyes", "truth")}
        taken = {c: values[chosen] for c, values in columns.items() if values is not None}
        return replace(self, **taken, traits={name: values[chosen] for name, values in self.traits.items()})

    def of_sign(self, name: str) -> "Predictions":
        """The answers on one sign as those of a model with the two labels `no NAME` and `NAME`, where it is known."""
        assert self.truth is not None  # its outputs are signs
        column = self.names.index(name)
        known = ~np.isnan(self.truth[:, column])
        rows, shown = self.rows(known), self.truth[known, column]
        there = rows.probabilities[:, column].astype(np.float64)
        names = (f"no {name}", name)
        return replace(
            rows,
            names=names,
            labels=np.array([names[int(one)] for one in shown], dtype=object),
            probabilities=np.stack([1 - there, there], axis=1),
            truth=None,
        )

    def with_probabilities(self, probabilities: np.ndarray) -> "Predictions":
        """The same B-scans with other answers, float32 `(n, k)`."""
        return replace(self, probabilities=probabilities.astype(np.float32))

    @classmethod
    def pool(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The rows of several, one after the other, such as those of the folds of a cross-validation.

        Raises:
            DataError: they don't know the same labels, or an image is in two of them.
        """
        if any(part.truth is not None for part in parts):
            raise DataError("predictions of signs can't be pooled yet")
        if len({part.names for part in parts}) != 1:
            raise DataError("predictions of different labels can't be pooled")
        joined = {c: np.concatenate([getattr(part, c) for part in parts]) for c in _COLUMNS}
        # What one part lacks can't be said of all.
        eyes = [part.eyes for part in parts if part.eyes is not None]
        known = [name for name in TRAITS if all(name in part.traits for part in parts)]
        traits = {name: np.concatenate([part.traits[name] for part in parts]) for name in known}
        pooled = cls(
            parts[0].names, **joined, eyes=np.concatenate(eyes) if len(eyes) == len(parts) else None, traits=traits
        )
        if len(set(pooled.hashes)) < len(pooled.hashes):
            raise DataError("an image was predicted in two of the parts to be pooled")
        return pooled

    def indices(self) -> np.ndarray:
        """True labels as int `(n,)`.

        Raises:
            DataError: a true label that the model doesn't know, or outputs that are signs.
        """
        if self.truth is not None:
            raise DataError(f"these are answers on signs ({', '.join(self.names)}), several a picture; it takes labels")
        index = {name: i for i, name in enumerate(self.names)}
        unknown = sorted(set(self.labels) - set(index))
        if unknown:
            raise DataError(f"true label(s) {', '.join(unknown)} are none of {', '.join(self.names)}")
        return np.array([index[label] for label in self.labels], int)

    def measure(self) -> dict:
        """Every metric of `OCTMetrics` on these rows, and how many groups (patients) they come from."""
        result = OCTMetrics(keep_in_memory=True).compute(
            predictions=self.probabilities.astype(np.float64), references=self.indices(), label_names=list(self.names)
        )
        assert result is not None  # it is None where another process collects
        return {"groups": len(set(self.groups)), **result}

    def write(self, path: Path) -> None:
        """Writes the Parquet file."""
        columns = {"content_hash": self.hashes, "group": self.groups, "label": self.labels, "side": self.sides}
        if self.eyes is not None:
            columns["eye"] = self.eyes
        table = {key: pa.array(value.tolist(), pa.string()) for key, value in columns.items()}
        table |= {name: pa.array(values.tolist(), TRAITS[name]) for name, values in self.traits.items()}
        for i, name in enumerate(self.names):
            table[f"p_{name}"] = pa.array(self.probabilities[:, i].astype(np.float32))
        if self.truth is not None:
            for i, name in enumerate(self.names):
                table[f"t_{name}"] = pa.array(self.truth[:, i].astype(np.float32))
        parquet.write_table(pa.table(table), path)

    @classmethod
    def read(cls, path: str | Path) -> "Predictions":
        """Reads what `write` wrote.

        Raises:
            DataError: it isn't such a file.
        """
        try:
            table = parquet.read_table(path)
            hashes, groups, labels, sides = (
                np.array(table[c].to_pylist(), dtype=object) for c in ("content_hash", "group", "label", "side")
            )
            names = tuple(c.removeprefix("p_") for c in table.column_names if c.startswith("p_"))
            values = np.stack([table[f"p_{name}"].to_numpy() for name in names], axis=1)
            eyes = np.array(table["eye"].to_pylist(), dtype=object) if "eye" in table.column_names else None
            traits = {name: table[name].to_numpy(zero_copy_only=False) for name in TRAITS if name in table.column_names}
            truth = None
            if f"t_{names[0]}" in table.column_names:
                truth = np.stack([table[f"t_{name}"].to_numpy() for name in names], axis=1)
            return cls(names, hashes, groups, labels, sides, values, eyes, traits, truth)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a predictions.parquet ({' '.join(str(error).split())})") from None
