"""Names to objects: the one place that knows models and backends, and imports them late."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from bge_rerank_integrations.errors import MissingExtra
from bge_rerank_integrations.registry import DEFAULT_MODEL
from bge_rerank_integrations.reranker import Reranker
from bge_rerank_integrations.types import Scorer

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer

Precision = Literal["auto", "fp32", "fp16", "bf16", "fp16-autocast", "bf16-autocast"]
SpecialTokens = Literal["literal", "error", "parse"]


class ScorerOptions(TypedDict, total=False):
    """The keyword options of `load_scorer`, whose docstring explains each."""

    device: str | None
    precision: Precision
    max_length: int | None
    query_max_length: int | None
    query_instruction: str | None
    passage_instruction: str | None
    special_tokens: SpecialTokens
    batch_size: int | None
    max_batch_tokens: int | None
    revision: str | None
    cache_dir: str | None
    local_files_only: bool
    token: str | None
    show_progress: bool


def load_scorer(model: str = DEFAULT_MODEL, **options: Unpack[ScorerOptions]) -> LocalScorer:
    raise NotImplementedError


def load_reranker(
    model: str = DEFAULT_MODEL,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    normalize: bool = True,
    **options: Unpack[ScorerOptions],
) -> Reranker:
    return Reranker(
        load_scorer(model, **options),
        top_n=top_n,
        score_threshold=score_threshold,
        normalize=normalize,
    )
