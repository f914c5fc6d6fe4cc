"""The pictures of a run, each drawn from numbers that are published beside it.

matplotlib is an extra: where it is missing, `can_draw()` says so and a card goes without pictures. Colours are those of
Okabe and Ito, which most colour-blind people tell apart, with a line style of its own for each.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oct_hf.evaluation.curves import GRID
from oct_hf.evaluation.oct_metrics import LESS_IS_BETTER, short_name


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def confusion_matrix_figure(
    confusion: list[list[int]], names: list[str], path: Path | BinaryIO, title: str, true: list[str] | None = None
) -> None:
    """Draws a confusion matrix: counts as numbers, the share of each true class as shade.

    Args:
        confusion: a row for each true label, of `k` counts (predicted).
        names: the `k` labels.
        path: a PNG to write, or an open file.
        title: what was measured, and on how many images.
        true: labels of the rows, where they aren't `names`.
    """
    counts, true = np.asarray(confusion), true or names
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(1.9 + 0.9 * len(names), 1.6 + 0.75 * len(true))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(true)):
        for column in range(len(names)):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{counts[row, column]}\n{shares[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(true)), true)
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


def curves_figure(curves: Mapping[str, dict | None], path: Path) -> None:
    """Draws ROC and precision-recall curves of each label against the rest, with their bands.

    Args:
        curves: what `curves.curves` gives.
        path: a PNG to write.
    """
    figure, (roc, pr) = _figure(8.2, 3.9, columns=2)
    for number, (label, found) in enumerate(curves.items()):
        for axes, kind in ((roc, "roc"), (pr, "pr")):
            if found:
                _line(axes, number, GRID, found[kind]["value"], label)
                if found[kind]["low"]:
                    axes.fill_between(GRID, found[kind]["low"], found[kind]["high"], color=_colour(number), alpha=0.15)
    roc.plot([0, 1], [0, 1], color="#888888", linewidth=0.7)
    for axes, x, y in ((roc, "1 - specificity", "sensitivity"), (pr, "sensitivity", "precision")):
        axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    _legend(figure, roc)
    figure.savefig(path)


def reliability_figure(bins: dict[str, list[dict]], path: Path, of: str = "confidence in the predicted class") -> None:
    """Draws a reliability diagram: how often the predicted class is right, by how sure the model says it is.

    Args:
        bins: by a name for the legend ("before", "after"), rows with `confidence`, `accuracy` and `n`.
        path: a PNG to write.
        of: what the confidence is.
    """
    figure, axes = _figure(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.7, label="perfect")
    for number, (name, rows) in enumerate(bins.items()):
        _line(axes, number, [row["confidence"] for row in rows], [row["accuracy"] for row in rows], name, marker="o")
    axes.set(xlabel=of, ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))
    _legend(figure, axes)
    figure.savefig(path)


def risk_coverage_figure(coverage: list[float], risk: list[float], path: Path) -> None:
    """Draws the share of wrong answers against the share of B-scans that are answered, the surest first.

    Args:
        coverage, risk: `n` each, 0 to 1.
        path: a PNG to write.
    """
    figure, axes = _figure(4.6, 3.6)
    _line(axes, 0, coverage, risk, "")
    axes.set(xlabel="share of B-scans answered, surest first", ylabel="share of these answers wrong", xlim=(0, 1))
    axes.set_ylim(0, max(0.05, 1.1 * max(risk)))
    figure.savefig(path)


def forest_figure(rows: list[dict], path: Path, name: str = "balanced accuracy") -> None:
    """Draws one value with its interval a row, such as those of subgroups; rows that say little are gray.

    Args:
        rows: with `name`, `value`, `low`, `high` (None where there is no interval) and `unsure`.
        path: a PNG to write.
        name: of the value.
    """
    figure, axes = _figure(6.4, 0.8 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        colour = "#888888" if row["unsure"] else _colour(0)
        if row["value"] is not None:
            axes.plot(row["value"], place, marker="o", color=colour, markersize=5)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.5, -0.5), xlabel=name)
    axes.grid(axis="x", linewidth=0.4)
    figure.savefig(path)


def comparison_figure(found: dict, path: Path) -> None:
    """Draws each model's differences from the first with their intervals, one panel a metric.

    Args:
        found: what `comparison.compare_all` gives.
        path: a PNG to write.
    """
    metrics = next(iter(found["runs"].values()))["metrics"]
    figure, panels = _figure(2.3 * len(metrics) + 1.2, 1.4 + 0.35 * len(found["runs"]), columns=len(metrics))
    names = list(found["runs"])
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color="#888888", linewidth=0.8)
        for place, name in enumerate(names):
            row = found["runs"][name]["metrics"][metric]
            if "why" not in row:
                axes.plot(row["difference"], place, marker="o", color=_colour(0), markersize=5)
                if row["low"] is not None:
                    axes.plot([row["low"], row["high"]], [place, place], color=_colour(0), linewidth=1.6)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        better = " (less is better)" if metric in LESS_IS_BETTER else ""
        axes.set_title(short_name(metric) + better, fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel(f"difference from {found['first']}", fontsize=9)
    figure.savefig(path)


def decision_figure(curves: dict[str, dict], path: Path) -> None:
    """Draws decision curves, one panel a question.

    Args:
        curves: by question what `operating_points.net_benefit` gives.
        path: a PNG to write.
    """
    figure, panels = _figure(2.9 * len(curves), 3.1, columns=len(curves))
    for axes, (question, curve) in zip(np.atleast_1d(panels), curves.items(), strict=True):
        for number, (key, name) in enumerate(
            (("model", "model"), ("treat_all", "act on all"), ("treat_none", "act on none"))
        ):
            _line(axes, number, curve["threshold"], curve[key], name)
        top = max(0.02, *curve["model"], curve["treat_all"][0])
        axes.set(xlabel="act from this probability on", xlim=(0, 1), ylim=(-0.25 * top, 1.1 * top))
        axes.set_title(question, fontsize=9)
    first = np.atleast_1d(panels)[0]
    first.set_ylabel("net benefit")
    _legend(figure, first)
    figure.savefig(path)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = ("-", "--", "-.", ":")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _line(axes, number: int, x, y, label: str, marker: str | None = None) -> None:
    style = _STYLES[number % len(_STYLES)]
    axes.plot(x, y, color=_colour(number), linestyle=style, linewidth=1.5, label=label, marker=marker, markersize=4)


def _legend(figure, axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(handles), 5), fontsize=8, frameon=False)


def _figure(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure

    # Not pyplot: it keeps global state and may look for a display.
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    return figure, figure.subplots(1, columns)
