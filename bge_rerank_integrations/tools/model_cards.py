"""Facts about a model before it is loaded, from this package and from the model's card.

Published results have their sources; this package did not measure them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import (
    OFFLINE_MODELS,
    ModelSpec,
    PublishedResults,
    find_model,
    known_models,
)
from bge_rerank_integrations.errors import MissingExtra, ModelNotFound, missing_extra
from bge_rerank_integrations.local.download import HUB_DEFAULTS
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.tools.doctor import CARRIER, installed_version

if TYPE_CHECKING:
    from bge_rerank_integrations.local.model_card import CardFacts


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model's facts, None if unknown, and its published results.

    `card` says whether the model's card was read, and if not, why.
    """

    id: str
    family: str | None
    parameters: str | None
    languages: str | None
    max_length: int | None
    license: str | None
    results: tuple[PublishedResults, ...]
    card: str


def list_models(cache_dir: str | None = None) -> list[tuple[ModelSpec, bool | None]]:
    """Every known model, and whether all of its files are on this machine; None if unknown.

    The hub's cache is searched without the network.
    """
    known = known_models()
    here: dict[str, bool | None] = {}
    with suppress(ModuleNotFoundError):  # unknown without the hub's client
        from bge_rerank_integrations.local.checkpoint import is_cached

        here = {spec.id: is_cached(spec.id, cache_dir) for spec in known}
    here |= dict.fromkeys(OFFLINE_MODELS, installed_version(CARRIER) is not None)
    return [(spec, here.get(spec.id)) for spec in known]


def describe_model(model: str, hub: HubOptions = HUB_DEFAULTS) -> ModelDescription:
    """Describe a hub id, a folder, or one of the offline models.

    The card's results come before the shipped ones. Shipped languages and licence are preferred to
    the card's, which may be only a code. Raises `ModelNotFound` for an unknown model that is not
    found, `CheckpointError` for a card that cannot be read, and `InvalidInputError` for the address
    of a server.
    """
    refuse_address(model)
    spec = find_model(model)
    card, status = None, "an embedded model has none; these facts are shipped with this package"
    if model not in OFFLINE_MODELS:
        try:
            with missing_extra("local"):
                from bge_rerank_integrations.local.model_card import read_card
            card = read_card(model, hub)
            status = "read" if card is not None else "the model has none with metadata"
        except (MissingExtra, ModelNotFound) as error:
            if spec is None:
                raise
            status = f"not read, the facts are those shipped with this package: {error}"
    facts = spec or card
    return ModelDescription(
        id=model,
        family=str(spec.family) if spec else None,
        parameters=spec.parameters if spec else None,
        languages=facts.languages if facts else None,
        max_length=spec.max_length if spec else None,
        license=facts.license if facts else None,
        results=(*_card_results(model, card), *(spec.results if spec else ())),
        card=status,
    )


def _card_results(model: str, card: "CardFacts | None") -> list[PublishedResults]:
    """The results of a card's model-index, grouped by task and metric."""
    if card is None:
        return []
    tables: dict[tuple[str, str], dict[str, float | str]] = {}
    for result in card.results:
        kind = (result.task_name or result.task_type, result.metric_name or result.metric_type)
        value: object = result.metric_value
        figure = value if isinstance(value, int | float) else str(value)
        tables.setdefault(kind, {})[result.dataset_name] = figure
    own = card.index_name == model.rstrip("/").rpartition("/")[2]
    note = "" if own else f"the card says that these are of {card.index_name!r}"
    return [
        PublishedResults(f"{task}, by its card", metric, figures, f"the card of {model}", note)
        for (task, metric), figures in tables.items()
    ]


def side_by_side(
    descriptions: Sequence[ModelDescription],
) -> dict[tuple[str, str], Mapping[str, PublishedResults]]:
    """The results by model id for each benchmark and metric, in the order of the models."""
    tables: dict[tuple[str, str], dict[str, PublishedResults]] = {}
    for description in descriptions:
        for results in description.results:
            tables.setdefault((results.benchmark, results.metric), {})[description.id] = results
    return dict(tables)
