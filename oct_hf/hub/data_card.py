"""The data set card: a Jinja template filled from the counted facts of oct-hf.json; what isn't known is absent."""

import datasets
from huggingface_hub import DatasetCardData

from oct_hf.hub.card import template
from oct_hf.hub.licences import REDISTRIBUTABLE

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
    licence, licence_url = REDISTRIBUTABLE[facts["license"]]
    return template("dataset.md.jinja", thousands="{:,}".format).render(
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
