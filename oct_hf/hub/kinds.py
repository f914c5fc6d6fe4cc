"""Which kind of model a run.json is of, and what is told of that kind alone; all else in a repository is told alike."""

from collections.abc import Callable
from dataclasses import dataclass

from oct_hf.hub import of_labels, of_signs


@dataclass(frozen=True)
class Kind:
    """What differs between the kinds; each function takes the content of run.json.

    Attributes:
        template: of the card; it fills the blocks of model.md.jinja.
        metadata_scores: type, name and value of each score in the card's metadata.
        card_facts: what the template gets beside what every card gets.
        headline: the result in a few words.
        compared: by what another training is compared: name, value and its interval.
        example_labels: of what there should be example pictures.
    """

    template: str
    metadata_scores: Callable[[dict], list[tuple[str, str, float]]]
    card_facts: Callable[[dict], dict]
    headline: Callable[[dict], str]
    compared: Callable[[dict], list[tuple[str, float | None, dict]]]
    example_labels: Callable[[dict], list[str]]


def _of(template: str, module) -> Kind:
    functions = ("metadata_scores", "card_facts", "headline", "compared", "example_labels")
    return Kind(template, *(getattr(module, name) for name in functions))


LABELS, SIGNS = _of("labels.md.jinja", of_labels), _of("signs.md.jinja", of_signs)


def kind_of(run: dict) -> Kind:
    """The kind of model that the content of a run.json is of."""
    return SIGNS if "signs" in run else LABELS
