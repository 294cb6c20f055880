"""A model's card, README.md, parsed by the hub's client; its text is data and never run."""

from dataclasses import dataclass
from typing import cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.download import find_folder
from bge_rerank_integrations.options import HubOptions

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts in a card's metadata, None where absent; `index_name` is the model of `results`."""

    languages: str | None
    license: str | None
    index_name: str | None
    results: tuple[EvalResult, ...]


def read_card(model: str, hub: HubOptions) -> CardFacts | None:
    """The facts on the card of a folder or hub id, downloaded unless cached; None without any.

    Raises `ModelNotFound`, and `CheckpointError` for metadata that the hub's parser refuses.
    """
    file = find_folder(model, (CARD,), hub, is_complete=lambda at: (at / CARD).is_file()) / CARD
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        if not text.lstrip().startswith("---"):
            return None
        data = cast(ModelCardData, ModelCard(text).data)
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"the metadata of {file} cannot be read: {error}") from error
    return CardFacts(
        languages=_joined(data.language),
        license=_joined(data.license_name or data.license),
        index_name=data.model_name,
        results=tuple(data.eval_results or ()),
    )


def _joined(value: object) -> str | None:
    if value is None:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
