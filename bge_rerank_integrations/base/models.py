"""The table of BGE's models, and the family that any model's own `config.json` declares.

The family is decided by the architecture that `config.json` declares, never by the model's name.
The table only adds what no config says: sizes, licences, and the embedders' query instructions.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from bge_rerank_integrations.errors import (
    CheckpointError,
    InvalidInputError,
    ModelNotFound,
    UnsupportedModel,
)
from bge_rerank_integrations.types import Pair

DEFAULT_MODEL = "BAAI/bge-reranker-v2-m3"
DEFAULT_EMBEDDER = "BAAI/bge-m3"

OFFLINE_MODELS = ("offline", "offline-embedder")
"""Names of the models that come embedded with the `offline` extra."""


class Family(StrEnum):
    """How a model turns text into a score."""

    ENCODER = "encoder"
    CAUSAL = "causal"
    LAYERWISE = "layerwise"
    LIGHTWEIGHT = "lightweight"
    BI_ENCODER = "bi-encoder"


LLM_FAMILIES = frozenset({Family.CAUSAL, Family.LAYERWISE, Family.LIGHTWEIGHT})


@dataclass(frozen=True, slots=True)
class PublishedResults:
    """Results on one benchmark by data set, as `source` states them; we did not measure them."""

    benchmark: str
    metric: str
    figures: Mapping[str, float | str]
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class PublishedScores:
    """Raw scores of some pairs as `source` states them, computed in `precision`."""

    pairs: tuple[Pair, ...]
    scores: tuple[float, ...]
    precision: Literal["fp32", "fp16"]
    source: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of the table in `models.json`, as the model card states it.

    `results` are empty if no source states them as text.
    """

    id: str
    family: Family
    parameters: str
    languages: str
    max_length: int
    license: str
    query_instruction: str | None = None
    results: tuple[PublishedResults, ...] = ()
    published_scores: PublishedScores | None = None


@cache
def known_models() -> tuple[ModelSpec, ...]:
    """Every model in the table, in its order."""
    table = resources.files(__package__).joinpath("models.json").read_bytes()
    return TypeAdapter(tuple[ModelSpec, ...]).validate_json(table)


def find_model(model: str) -> ModelSpec | None:
    """The table's row for exactly this id, or None."""
    return next((spec for spec in known_models() if spec.id == model), None)


def nearest_model(model: str) -> str:
    """A question that names the known model with the most similar id, or an empty text."""
    names = [spec.id for spec in known_models()]
    near = difflib.get_close_matches(model, names, n=1, cutoff=0.8)
    return f"Did you mean {near[0]}? " if near and near[0] != model else ""


def no_folder(path: Path) -> ModelNotFound:
    """The error for a path where a model's folder should be."""
    if path.is_file():
        return ModelNotFound(f"{path} is a file; a model is a folder: give {path.parent}")
    return ModelNotFound(f"no folder {path} (looked for it in {Path.cwd()})")


_LLM_ARCHITECTURES = {
    "GemmaForCausalLM": Family.CAUSAL,
    "LayerWiseMiniCPMForCausalLM": Family.LAYERWISE,
    "CostWiseGemmaForCausalLM": Family.LIGHTWEIGHT,
}


def family_of(config: Mapping[str, Any], model: str, *, label: int | str | None = None) -> Family:
    """The family that this `config.json` describes.

    Raises `UnsupportedModel`, naming the architecture, for anything that has no single relevance
    logit: a classifier of several labels without a `label`, a masked language model, a model of an
    unknown kind. Raises `InvalidInputError` for a `label` that the model does not have.
    """
    if not config.get("architectures"):
        raise UnsupportedModel(
            f"config.json of {model} has no architectures: add the class that was saved, such as "
            f'["XLMRobertaForSequenceClassification"], or use a reranker such as {DEFAULT_MODEL}'
        )
    architecture = str(config["architectures"][0])
    classifier = architecture.endswith("ForSequenceClassification")
    if label is not None:
        if not classifier or label_count(config) == 1:
            raise InvalidInputError(
                f"label is {label!r}, but {model} is not a classifier with several labels: leave "
                "it out"
            )
        label_index(config, model, label)
    if architecture in _LLM_ARCHITECTURES:
        return _LLM_ARCHITECTURES[architecture]
    if classifier:
        labels = label_count(config)
        if labels != 1 and label is None:
            raise UnsupportedModel(
                f"{model} is a {architecture} of {labels} labels, a classifier and not a reranker, "
                f"which has one; say which label means relevant with label=... "
                f"({', '.join(_label_names(config))}), or use a reranker such as {DEFAULT_MODEL}"
            )
        return Family.ENCODER
    # an encoder without a head, as embedding models are saved: BertModel, XLMRobertaModel, ...
    if architecture.endswith("Model"):
        return Family.BI_ENCODER
    answers = (
        "rerankers that answer yes or no (Qwen3-Reranker, mxbai-rerank-v2) do not run here: serve "
        "the model with vLLM and give its base_url, or "
        if architecture.endswith("ForCausalLM")
        else ""
    )
    raise UnsupportedModel(
        f"{model} is a {architecture}, which gives no relevance score; "
        f"{answers}use a reranker such as {DEFAULT_MODEL}"
    )


def label_count(config: Mapping[str, Any]) -> int:
    """The number of labels of a sequence classifier; transformers' own default is two."""
    names, number = config.get("id2label"), config.get("num_labels", 2)
    if isinstance(names, Mapping):
        return len(names)
    if names is not None or type(number) is not int or number < 1:
        raise CheckpointError(
            f"config.json has id2label={names!r} and num_labels={number!r}: the first must be an "
            "object, or the second a whole number from 1"
        )
    return number


def label_index(config: Mapping[str, Any], model: str, label: int | str) -> int:
    """The index of a label among a classifier's logits, by its number or its name in `id2label`.

    Raises `InvalidInputError`, which lists the labels, for any other.
    """
    names = _label_names(config)
    if isinstance(label, str) and names.count(label) == 1:
        return names.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    raise InvalidInputError(
        f"label is {label!r}; {model} has the labels {', '.join(names)}, numbered from 0"
    )


def _label_names(config: Mapping[str, Any]) -> list[str]:
    named = config.get("id2label")
    named = {str(key): str(name) for key, name in named.items()} if named else {}
    return [named.get(str(index), f"LABEL_{index}") for index in range(label_count(config))]
