"""The place from which card_text.py still imports `yaml_block`; it goes when that line names `front_matter`."""

from oct_hf.hub.front_matter import yaml_block

__all__ = ["yaml_block"]
