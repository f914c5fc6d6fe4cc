"""docs/troubleshooting.md quotes errors that the code really raises."""

import ast
import re
from pathlib import Path

TOP = Path(__file__).parents[1]


def told(node: ast.expr) -> str:
    """A message's text, with … for what it fills in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(told(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return told(node.left) + told(node.right) if isinstance(node, ast.BinOp) else "…"


def raised() -> set[str]:
    """The texts of all raise statements of the package."""
    texts = set()
    for path in sorted((TOP / "oct_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts |= {told(argument) for argument in node.exc.args}
    return texts


def pattern(quote: str) -> str:
    """A quote as a pattern for a message's text: … is anything, also nothing."""
    return ".*".join(re.escape(part) for part in quote.split("…"))


def test_every_quoted_error_is_raised_somewhere():
    page = (TOP / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quotes, texts = re.findall(r"^> (.+)$", page, re.MULTILINE), raised()
    assert len(quotes) >= 30
    # What a quote leaves in place of … must not be so short that it fits anything.
    assert all(len(quote.replace("…", "").strip()) >= 12 for quote in quotes)
    missing = [quote for quote in quotes if not any(re.fullmatch(pattern(quote), text) for text in texts)]
    assert not missing, "\n".join(missing)
