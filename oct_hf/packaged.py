"""Where recipes and the card's template lie: at the top of a checkout, inside the package of a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = {"recipes": "scripts/recipes", "model_card": "model_card"}


def packaged(name: str) -> Path:
    """The folder `recipes` or `model_card`, in a wheel or a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / _CHECKOUT[name]
