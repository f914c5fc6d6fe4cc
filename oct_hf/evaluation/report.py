"""The pictures of a run, each drawn from numbers that are published beside it.

matplotlib is an extra: where it is missing, `can_draw()` says so and a card goes without pictures.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def confusion_matrix_figure(confusion: list[list[int]], names: list[str], path: Path, title: str) -> None:
    """Draws a confusion matrix: counts as numbers, the share of each true class as shade.

    Args:
        confusion: `k` rows (true) of `k` counts (predicted).
        names: the `k` labels.
        path: a PNG to write.
        title: what was measured, and on how many images.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(1.9 + 0.9 * len(names), 1.6 + 0.75 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    figure.savefig(path)


def training_figure(epochs: list[dict], best_epoch: int, path: Path) -> None:
    """Draws training loss, validation log loss and validation balanced accuracy by epoch, with the epoch that was kept.

    Args:
        epochs: rows with `epoch`, `loss`, `log_loss` and `balanced_accuracy`.
        best_epoch: the one whose weights were kept.
        path: a PNG to write.
    """
    figure, axes = _figure(6.4, 3.2)
    x = [row["epoch"] for row in epochs]
    (first,) = axes.plot(x, [row["loss"] for row in epochs], color="#888888", marker=".", label="training loss")
    (second,) = axes.plot(
        x, [row["log_loss"] for row in epochs], color="#b2182b", marker=".", label="validation log loss"
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    accuracy = [row["balanced_accuracy"] for row in epochs]
    (third,) = right.plot(x, accuracy, color="#2166ac", marker=".", label="validation balanced accuracy")
    right.set_ylim(0, 1.02)
    right.set_ylabel("balanced accuracy")
    kept = axes.axvline(best_epoch, color="#444444", linewidth=0.8, linestyle=":", label=f"kept: epoch {best_epoch}")
    handles = [first, second, third, kept]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=7.5, frameon=False)
    figure.savefig(path)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    # Not pyplot: it keeps global state and may look for a display.
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    return figure, figure.subplots()
