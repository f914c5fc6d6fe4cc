"""The model card: a Jinja template filled from a run's measured facts.

What was not measured is absent. The card's numbers come from `run.json`, whose results were computed from the
`predictions.parquet` that lies beside the card.
"""

import re
from collections.abc import Sequence

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from oct_hf.hub.kinds import kind_of
from oct_hf.labels import describe
from oct_hf.packaged import packaged

# From the least to the most demanding; a model's licence is the most demanding of its base weights' and its data's.
_LICENCES = (
    "cc0-1.0",
    "mit",
    "bsd-3-clause",
    "apache-2.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
)
_ENTITIES = {"<": "&lt;", ">": "&gt;"}


def model_licence(run: dict) -> str | None:
    """The weights' licence: the recipe's own word, else the most demanding of base, teacher, autoencoder and data;
    None where one is unknown.

    Training from random weights adds no base licence, and this package's own (Apache-2.0) is the least there is.
    """
    if run["recipe"]["card"]["license"]:
        return run["recipe"]["card"]["license"]
    parts = ["apache-2.0", run["data"]["license"]]
    if run["model"]["weights"] != "random":
        parts.append(run["model"]["license"])
    if run.get("teacher") and run["teacher"]["weights"] != "random":
        parts.append(run["teacher"]["license"])
    if cleaner := run["model"].get("denoise"):
        parts.append(cleaner["licenses"]["data"])
        if cleaner["weights"] != "random":
            parts.append(cleaner["licenses"]["weights"])
    parts += [member["licence"] for member in run.get("ensemble", {"members": []})["members"]]
    return most_demanding(parts)


def most_demanding(licences: Sequence[str | None]) -> str | None:
    """Of several licences, as the Hub names them, the one that asks most; None where one is not known."""
    if any(licence not in _LICENCES for licence in licences):
        return None if len(set(licences)) > 1 else licences[0]
    return max(licences, key=_LICENCES.index)


def card_metadata(run: dict) -> ModelCardData:
    """The YAML block that the Hub reads, out of the content of run.json."""
    data, model, measured = run["data"], run["model"], kind_of(run).metadata_scores(run)
    scores = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=data["name"],
            dataset_name=" ".join(data["title"].split()),
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for kind, name, value in measured
    ]
    extra = {}
    if model["weights"] == "hub" and model["hub_id"]:
        extra["base_model"] = model["hub_id"]
    if run["recipe"]["card"]["hub_datasets"]:
        extra["datasets"] = list(run["recipe"]["card"]["hub_datasets"])
    licence = model_licence(run)
    if licence:
        extra["license"] = licence
    own = "code" in model  # then the Hub's snippet for transformers wouldn't work
    return ModelCardData(
        language="en",
        library_name="oct-hf" if own else "transformers",
        pipeline_tag="image-classification",
        tags=[
            *(["onnx"] if own else ["timm"]),
            *("oct", "optical-coherence-tomography", "ophthalmology", "retina", "medical", "oct-hf"),
        ],
        metrics=list(dict.fromkeys(kind for kind, _, _ in measured)),
        model_name=run["name"],
        eval_results=scores,
        widget=[{"src": path, "example_title": _title(path)} for path in run["examples"]],
        **extra,
    )


def render_card(run: dict, repo: str | None = None) -> str:
    """README.md of the repository.

    Args:
        run: the content of run.json.
        repo: its id on the Hub, once it has one; the code examples then use it.
    """
    kind = kind_of(run)
    return template(kind.template).render(
        metadata=card_metadata(run).to_yaml(),
        run=run,
        data=run["data"],
        unit=run["data"]["grouped_by"],
        repo=repo,
        model=run["model"],
        training=run["training"],
        split=run["split"],
        licence=model_licence(run),
        files=run["files"],
        **kind.card_facts(run),
    )


def span(interval: dict | None) -> str:
    """An interval as text, or why there is none."""
    if not interval or interval.get("low") is None:
        return "n/a" + (f": {interval['why']}" if interval and interval.get("why") else "")
    return f"{interval['low']:.3f}–{interval['high']:.3f}"


def render_interim_card(name: str, epoch: int, epochs: int, validation: dict, own: bool = False) -> str:
    """README.md of the branch `in-training`.

    Args:
        name: of the run.
        epoch, epochs: the best so far, and of how many.
        validation: `balanced_accuracy` at least.
        own: timm lacks the network.
    """
    facts = {"name": name, "epoch": epoch, "epochs": epochs, "validation": validation, "own": own}
    return template("in_training.md.jinja").render(facts)


def template(name: str, **filters) -> jinja2.Template:
    """A card's template; a fact that is missing is an error when it is rendered, not a blank on the card."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(packaged("model_card")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "score": lambda value: "n/a" if value is None else f"{value:.3f}",
        "span": span,
        "describe": describe,
        "plain": plain,
        "link": link,
        **filters,
    }
    return environment.get_template(name)


def plain(text: str) -> str:
    """Text from outside on one line, which Markdown shows as it is: no tag, cell, link or heading starts in it."""
    one_line = " ".join(str(text).split())
    return re.sub(r"[|<>\\`*_\[\]#]", lambda match: _ENTITIES.get(match[0], "\\" + match[0]), one_line)


def link(address: str) -> str:
    """A link where the text is a web address, else the text."""
    return f"<{address}>" if re.fullmatch(r"https?://[^\s<>\\]+", address) else plain(address)


def _title(path: str) -> str:
    return f"Phantom: {path.split('/')[-1].split('.')[0]}"
