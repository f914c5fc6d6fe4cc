"""The data set card: a Jinja template filled from the counted facts of oct-hf.json; what isn't known is absent."""

import re

import datasets
import jinja2
from huggingface_hub import DatasetCardData

from oct_hf.hub.card import plain
from oct_hf.hub.licences import REDISTRIBUTABLE
from oct_hf.labels import describe
from oct_hf.packaged import packaged

_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))


def data_card_metadata(facts: dict, features: datasets.Features) -> DatasetCardData:
    """The YAML block that the Hub and `datasets` read.

    Args:
        facts: the content of oct-hf.json.
        features: of the rows.
    """
    sizes = {side: sum(s["size"] for s in facts["shards"] if s["side"] == side) for side in facts["sides"]}
    splits = [
        {"name": side, "num_bytes": sizes[side], "num_examples": row["images"]} for side, row in facts["sides"].items()
    ]
    return DatasetCardData(
        license=facts["license"],
        pretty_name=" ".join(facts["title"].split()),
        task_categories=["image-classification"],
        task_ids=["multi-class-image-classification"],
        size_categories=[next((name for name, end in _SIZES if facts["images"] < end), "10M<n<100M")],
        tags=["oct", "optical-coherence-tomography", "ophthalmology", "retina", "medical", "oct-hf"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": side, "path": f"data/{side}-*.parquet"} for side in facts["sides"]],
            }
        ],
        dataset_info={
            "features": features._to_yaml_list(),
            "splits": splits,
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
    )


def render_data_card(facts: dict, features: datasets.Features, repo: str) -> str:
    """README.md of the data set's repository.

    Args:
        facts: the content of oct-hf.json.
        features: of the rows.
        repo: its id on the Hub.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(packaged("model_card")),
        undefined=jinja2.StrictUndefined,  # a fact that is missing is an error here, not a blank on the card
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"describe": describe, "plain": plain, "link": _link, "thousands": "{:,}".format}
    licence, licence_url = REDISTRIBUTABLE[facts["license"]]
    return environment.get_template("dataset.md.jinja").render(
        metadata=data_card_metadata(facts, features).to_yaml(),
        facts=facts,
        labels=facts["labels"],
        unit=facts["grouped_by"],
        split=facts["split"],
        pictures=facts["pictures"],
        phantom=facts["name"] == "phantom",
        licence=licence,
        licence_url=licence_url,
        repo=repo,
    )


def _link(address: str) -> str:
    """A link where the text is a web address, else the text."""
    return f"<{address}>" if re.fullmatch(r"https?://[^\s<>\\]+", address) else plain(address)
