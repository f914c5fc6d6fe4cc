"""What the verbs print: tables on stdout, remarks on stderr."""

import sys

WIDE = 180


def say(text: str) -> None:
    print(text, file=sys.stderr)


def print_table(title: str, columns: tuple, rows: list[tuple]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(title)  # not the table's own title, which is wrapped to the table's width
    table = Table(box=box.SIMPLE, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 or not column else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: file names and labels are no markup
    # A pipe or a log has no width of its own; rich's 80 columns would break file names.
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)


def score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def print_result(result: dict, title: str, unit: str = "patient", spans: dict | None = None) -> None:
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
