"""What the verbs print: tables on stdout, remarks on stderr."""

import json
import sys
from typing import Any

from oct_hf.untrusted import ORDERS, shown

WIDE = 180


def say(text: str) -> None:
    """A remark or an error on stderr."""
    print(shown(text), file=sys.stderr)


def tell(text: object) -> None:
    """A result on stdout."""
    print(shown(str(text)))


def print_json(content: Any) -> None:
    """The one document that a verb with --json prints."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    print(ORDERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))  # the same document, and harmless to a terminal


def print_table(title: str, columns: tuple, rows: list[tuple]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    tell(title)  # not the table's own title, which is wrapped to the table's width
    table = Table(box=box.SIMPLE, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(Text(shown(column)), justify="left" if index == 0 or not column else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))  # Text: file names and labels are no markup
    # A pipe or a log has no width of its own; rich's 80 columns would break file names.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    with console.capture() as drawn:  # printed by print, as all else is: rich ends the program at a closed pipe
        console.print(table)
    print(drawn.get(), end="")


def score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def spanned(value: float | None, span: dict) -> str:
    """A score with its interval, where it has one."""
    return score(value) + (f" ({span['low']:.3f} to {span['high']:.3f})" if "low" in span else "")


def print_result(
    result: dict, title: str, unit: str = "patient", spans: dict | None = None, calibration: dict | None = None
) -> None:
    """What `Predictions.measure` gives, with its `intervals`; and of `describe_calibration` what noise alone makes."""
    from oct_hf.evaluation.oct_metrics import short_name

    names = list(result["per_class"])
    rows = []
    for name, counts in zip(names, result["confusion_matrix"], strict=True):
        scores = (score(result["per_class"][name][key]) for key in ("recall", "specificity", "auroc"))
        rows.append((name, *map(str, counts), *scores))
    columns = ("true", *(f"→ {name}" for name in names), "sens.", "spec.", "AUROC")
    print_table(f"{title}: {result['n']} B-scans, {result['groups']} {unit}s", columns, rows)
    for key in ("balanced_accuracy", "accuracy", "auroc", "f1", "mcc", "log_loss", "ece"):
        found = (spans or {"metrics": {}})["metrics"].get(key, {})
        interval = f"  95 % interval {found['low']:.3f} to {found['high']:.3f}" if "low" in found else ""
        print(f"{short_name(key):<18} {score(result[key])}{interval}")
    if perfect := (calibration or {}).get("ece_if_perfect"):
        print(f"{'':<18} {perfect['mean']:.3f}  if calibrated perfectly, in 95 % of cases at most {perfect['q95']:.3f}")


def print_joined(joined: dict | None, unit: str) -> None:
    """How good whole eyes or patients are answered, of one run or of pooled folds; nothing where none is known."""
    from oct_hf.evaluation.oct_metrics import short_name

    if joined is None:
        return
    found, spans = joined.get("test") or joined["results"], joined["intervals"]
    rules = dict.fromkeys(joined.get("rules") or [joined["rule"]])
    texts = [f"{short_name(key)} {spanned(found[key], spans.get(key, {}))}" for key in ("balanced_accuracy", "auroc")]
    count = joined["n"] if "n" in joined else joined["eyes"]["test"]
    print(f"joined by {unit} ({', '.join(rules)}): {count} {unit}s, {', '.join(texts)}")


def print_signs(signs: dict, title: str) -> None:
    """What `evaluation.signs` found of each sign: on the test side, or on other data."""
    rows = []
    for name, one in signs.items():
        results, calibration = one["results"], one["calibration"]
        results, calibration = results.get("test", results), calibration.get("after", {"test": calibration})["test"]
        at = (one["at_youden"] or {}).get("test")
        shares = [spanned(at[key], at["intervals"][key]) if at else "n/a" for key in ("sensitivity", "specificity")]
        areas = [spanned(results[key]["value"], results[key]) for key in ("auroc", "auprc")]
        rows.append((name, f"{results['positive']} of {results['n']}", *areas, *shares, score(calibration["ece"])))
    columns = ("sign", "B-scans", "AUROC", "AUPRC", "sens.", "spec.", "ECE")
    print_table(f"{title}; in brackets 95 % intervals, thresholds from validation", columns, rows)


def print_disease(found: dict) -> None:
    """The disease that follows from the signs on the test side."""
    disease, rows = found["disease"]["test"], []
    for name, counts in zip(disease["labels"], disease["confusion"], strict=True):
        if any(counts):
            rows.append((name, *map(str, counts), score(disease["recall"].get(name))))
    columns = ("true", *(f"→ {name}" for name in disease["labels"]), "sens.")
    print_table(f"the disease by the signs ({found['rule']})", columns, rows)
    value = disease["balanced_accuracy"]
    interval = f"  95 % interval {value['low']:.3f} to {value['high']:.3f}" if "low" in value else ""
    print(f"{'balanced accuracy':<18} {score(value['value'])}{interval}")
