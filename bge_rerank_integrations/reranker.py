"""A scorer turned into an ordering: sort on the raw score, show on one scale, threshold, cut."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from bge_rerank_integrations.cancellation import in_worker
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    ScorerContractError,
)
from bge_rerank_integrations.pairs import check_text
from bge_rerank_integrations.types import FloatArray, Pair, RerankResult, Scale, Scorer


class Reranker:
    """Orders passages by a scorer's scores.

    `top_n` keeps that many results (`None`: all), `score_threshold` those whose shown score is at
    least that. With `normalize` a logit is shown as its sigmoid, in (0, 1); cosines and
    probabilities are shown as they are. The order is always that of the raw scores, because a
    sigmoid makes ties of logits that differ; equal raw scores keep the caller's order.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        normalize: bool = True,
    ) -> None:
        self.scorer = scorer
        self.top_n = check_top_n(top_n)
        self.score_threshold = check_threshold(score_threshold)
        self.normalize = normalize

    def __repr__(self) -> str:
        return (
            f"Reranker({self.scorer.name!r}, top_n={self.top_n}, "
            f"score_threshold={self.score_threshold}, normalize={self.normalize})"
        )

    def rerank(
        self, query: str, passages: Iterable[str], top_n: int | None = None
    ) -> list[RerankResult]:
        """Return the best passages first; `top_n` overrides the reranker's own for this call.

        Each result's `index` points into `passages`, which are left as they are. No passages give
        no results, without touching the scorer. Raises `InvalidInputError` for a query or passage
        that is not text and for a `top_n` below 1, and whatever the scorer raises.
        """
        limit = self.top_n if top_n is None else check_top_n(top_n)
        query = check_text(query, "query")
        if isinstance(passages, str) or not isinstance(passages, Iterable):
            raise InvalidInputError(
                f"passages is one {type(passages).__name__}; pass a list of strings"
            )
        pairs = [
            (query, check_text(passage, "passage", index)) for index, passage in enumerate(passages)
        ]
        if not pairs:
            return []
        raw = checked_scores(self.scorer, pairs)
        order = np.argsort(-raw, kind="stable")
        results = [RerankResult(int(i), self.shown(float(raw[i])), float(raw[i])) for i in order]
        if self.score_threshold is not None:
            results = [result for result in results if result.score >= self.score_threshold]
        return results[:limit]

    async def arerank(
        self, query: str, passages: Sequence[str], top_n: int | None = None
    ) -> list[RerankResult]:
        """`rerank` on a worker thread; cancelling the task stops it between two batches."""
        return await in_worker(self.rerank, query, passages, top_n)

    def shown(self, raw_score: float) -> float:
        """The raw score on the scale that is shown: see `normalize`."""
        return show_score(raw_score, self.scorer.scale, normalize=self.normalize)


def checked_scores(scorer: Scorer, pairs: Sequence[Pair]) -> FloatArray:
    """The scorer's raw scores, which must be one finite number per pair.

    Raises `ScorerContractError` or `NonFiniteScoreError` where they are not.
    """
    raw = np.asarray(scorer.score(pairs), dtype=np.float32)
    if raw.shape != (len(pairs),):
        raise ScorerContractError(
            f"{scorer.name} gave scores of shape {raw.shape} for {len(pairs)} pairs"
        )
    if not np.isfinite(raw).all():
        index = int(np.flatnonzero(~np.isfinite(raw))[0])
        raise NonFiniteScoreError(
            f"{scorer.name} gave {raw[index]} for the pair at position {index}"
        )
    return raw


def show_score(raw_score: float, scale: Scale, *, normalize: bool) -> float:
    """A logit's sigmoid in double precision if `normalize`; anything else unchanged."""
    if scale != "logit" or not normalize:
        return raw_score
    # exp of a large positive number overflows, so each sign takes the form that does not
    if raw_score >= 0:
        return 1.0 / (1.0 + math.exp(-raw_score))
    odds = math.exp(raw_score)
    return odds / (1.0 + odds)


def check_threshold(threshold: object) -> float | None:
    """Return the threshold; raise `InvalidInputError` unless it is None or a number, not NaN."""
    if threshold is None:
        return None
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or math.isnan(threshold)
    ):
        raise InvalidInputError(f"score_threshold is {threshold!r}; it must be a number or None")
    return float(threshold)


def check_top_n(top_n: object) -> int | None:
    """Return `top_n`; raise `InvalidInputError` unless it is None or a whole number from 1."""
    if top_n is None:
        return None
    if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
        raise InvalidInputError(f"top_n is {top_n!r}; it must be at least 1, or None for all")
    return top_n
