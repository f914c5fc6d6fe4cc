"""The YAML front matter of a README.md: a card's metadata."""

import re

from oct_hf.untrusted import yaml_of


def yaml_block(text: str) -> dict | None:
    """The metadata at the head of a README.md; None where there is none.

    Raises:
        yaml.YAMLError: it isn't YAML.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return yaml_of(match[1]) if match else None
