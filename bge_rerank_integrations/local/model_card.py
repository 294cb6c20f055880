"""A model's card, README.md, read by the hub's own parser; its text is data and is not run."""

from dataclasses import dataclass
from typing import cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.download import HubOptions, find_folder


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card's metadata states; None where it states nothing.

    `index_name` is the model that its results are of, by its own words.
    """

    languages: str | None
    license: str | None
    index_name: str | None
    results: tuple[EvalResult, ...]


def read_card(
    model: str,
    *,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> CardFacts | None:
    """The facts on the card of a folder or of a hub id, which is downloaded unless it is cached.

    None if there is no card, or one without metadata. Raises `ModelNotFound` for a model that is
    not there, and `CheckpointError` for metadata that the hub's parser refuses.
    """
    folder = find_folder(
        model,
        ("README.md",),
        HubOptions(cache_dir=cache_dir, local_files_only=local_files_only, token=token),
    )
    file = folder / "README.md"
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
