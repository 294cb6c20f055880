"""What is known of a model before it is loaded: the table's facts, and its card's where it is here.

Figures are other people's, each with where it was stated; none was measured by us.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import OFFLINE_MODELS, PublishedResults, find_model
from bge_rerank_integrations.errors import MissingExtra, ModelNotFound

if TYPE_CHECKING:
    from bge_rerank_integrations.local.model_card import CardFacts


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model's facts, None where nobody states them, and its published results.

    `card` says in words whether the model's card was read, and if not, why not.
    """

    id: str
    family: str | None
    parameters: str | None
    languages: str | None
    max_length: int | None
    license: str | None
    results: tuple[PublishedResults, ...]
    card: str


def describe_model(
    model: str,
    *,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> ModelDescription:
    """What is known of a hub id, a folder, or one of the offline models.

    The card's results come first, then those that the table has. The table's languages and licence
    go before the card's, which may be a mere code. Raises `ModelNotFound` for what is neither in
    the table nor found as a model, `CheckpointError` for a card that cannot be read, and
    `InvalidInputError` for the address of a server.
    """
    refuse_address(model)
    spec = find_model(model)
    card, said = None, "an embedded model has none; these facts are shipped with this package"
    if model not in OFFLINE_MODELS:
        try:
            from bge_rerank_integrations.local.model_card import read_card

            card = read_card(
                model, cache_dir=cache_dir, local_files_only=local_files_only, token=token
            )
            said = "read" if card is not None else "the model has none with metadata"
        except ModuleNotFoundError as error:
            missing = MissingExtra(str(error.name), "local")
            if spec is None:
                raise missing from error
            said = f"not read, the facts are those shipped with this package: {missing}"
        except ModelNotFound as error:
            if spec is None:
                raise
            said = f"not read, the facts are those shipped with this package: {error}"
    shipped = () if spec is None else spec.results
    return ModelDescription(
        id=model,
        family=None if spec is None else str(spec.family),
        parameters=None if spec is None else spec.parameters,
        languages=spec.languages if spec is not None else card.languages if card else None,
        max_length=None if spec is None else spec.max_length,
        license=spec.license if spec is not None else card.license if card else None,
        results=(*_card_results(model, card), *shipped),
        card=said,
    )


def _card_results(model: str, card: "CardFacts | None") -> list[PublishedResults]:
    """The results of a card's model-index, a table for each kind of task and metric."""
    if card is None:
        return []
    tables: dict[tuple[str, str], dict[str, float | str]] = {}
    for result in card.results:
        kind = (result.task_name or result.task_type, result.metric_name or result.metric_type)
        tables.setdefault(kind, {})[result.dataset_name] = _number(result.metric_value)
    own = card.index_name == model.rstrip("/").rpartition("/")[2]
    note = "" if own else f"the card says that these are of {card.index_name!r}"
    return [
        PublishedResults(f"{task}, by its card", metric, figures, f"the card of {model}", note)
        for (task, metric), figures in tables.items()
    ]


def _number(value: object) -> float | str:
    return value if isinstance(value, int | float) else str(value)


def side_by_side(
    descriptions: Sequence[ModelDescription],
) -> dict[tuple[str, str], Mapping[str, PublishedResults]]:
    """For each benchmark and metric, the results by the model's id, in the order of the models."""
    tables: dict[tuple[str, str], dict[str, PublishedResults]] = {}
    for description in descriptions:
        for results in description.results:
            tables.setdefault((results.benchmark, results.metric), {})[description.id] = results
    return dict(tables)
