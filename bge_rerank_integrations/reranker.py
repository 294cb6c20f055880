"""A scorer turned into an ordering: sort on the raw score, show on one scale, threshold, cut."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from bge_rerank_integrations.cancellation import in_worker, time_limit
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    ScorerContractError,
    ScoringFailed,
)
from bge_rerank_integrations.pairs import check_text
from bge_rerank_integrations.types import FloatArray, OnError, Pair, RerankResult, Scale, Scorer

logger = logging.getLogger("bge_rerank_integrations")


class Reranker:
    """Orders passages by a scorer's scores.

    `top_n` keeps that many results (`None`: all), `score_threshold` those whose shown score is at
    least that. With `normalize` a logit is shown as its sigmoid, in (0, 1); cosines and
    probabilities are shown as they are. The order is always that of the raw scores, because a
    sigmoid makes ties of logits that differ; equal raw scores keep the caller's order.

    `timeout` is the time in seconds that one rerank may take, loading the model apart; scorers look
    at it between two batches or requests. When it passes, or scoring fails otherwise
    (`ScoringFailed`), `on_error="raise"` raises. `"keep"` says so in the log and ranks what is
    scored; the rest follows in the caller's order with `scored` False, whatever the
    `score_threshold`. Errors of the input, of loading and of programs always raise.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        normalize: bool = True,
        timeout: float | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.scorer = scorer
        self.top_n = check_top_n(top_n)
        self.score_threshold = check_threshold(score_threshold)
        self.normalize = normalize
        self.timeout = check_timeout(timeout)
        if on_error not in get_args(OnError):
            raise InvalidInputError(f"on_error is {on_error!r}; it must be 'raise' or 'keep'")
        self.on_error = on_error

    def __repr__(self) -> str:
        return (
            f"Reranker({self.scorer.name!r}, top_n={self.top_n}, "
            f"score_threshold={self.score_threshold}, normalize={self.normalize}, "
            f"timeout={self.timeout}, on_error={self.on_error!r})"
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
        raw = self._raw_scores(pairs)
        results = []
        for index in np.argsort(-raw, kind="stable").tolist():  # NaN goes last
            number = float(raw[index])
            result = RerankResult(index, self.shown(number), number, scored=not math.isnan(number))
            if (
                self.score_threshold is None
                or not result.scored
                or result.score >= self.score_threshold
            ):
                results.append(result)
        return results[:limit]

    def _raw_scores(self, pairs: Sequence[Pair]) -> FloatArray:
        """One raw score for each pair; NaN where scoring failed and `on_error` is "keep"."""
        try:
            with time_limit(self.timeout):
                return checked_scores(self.scorer, pairs)
        except ScoringFailed as error:
            if self.on_error == "raise":
                raise
            raw = _checked_partial(error, len(pairs))
            logger.warning(
                "%d of %d passages were not scored and keep the order they came in: %s: %s",
                int(np.isnan(raw).sum()),
                len(pairs),
                type(error).__name__,
                error,
            )
            return raw

    async def arerank(
        self, query: str, passages: Sequence[str], top_n: int | None = None
    ) -> list[RerankResult]:
        """`rerank` on a worker thread; cancelling the task stops it between two batches.

        Waiting for a thread counts as part of the `timeout`.
        """
        with time_limit(self.timeout):
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


def _checked_partial(error: ScoringFailed, pairs: int) -> FloatArray:
    """What a failure left scored; where that cannot be right, nothing."""
    partial = error.partial
    if partial is None:
        return np.full(pairs, np.nan, dtype=np.float32)
    partial = np.asarray(partial, dtype=np.float32)
    if partial.shape != (pairs,) or np.isinf(partial).any():
        raise ScorerContractError(
            f"a {type(error).__name__} held partial scores of shape {partial.shape} for {pairs} "
            "pairs, or infinite ones"
        ) from error
    return partial


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


def check_timeout(timeout: object) -> float | None:
    """Return the seconds; raise `InvalidInputError` unless None or a number above 0."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidInputError(
            f"timeout is {timeout!r}; it must be seconds, more than 0, or None for no limit"
        )
    return float(timeout)


def check_top_n(top_n: object) -> int | None:
    """Return `top_n`; raise `InvalidInputError` unless it is None or a whole number from 1."""
    if top_n is None:
        return None
    if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
        raise InvalidInputError(f"top_n is {top_n!r}; it must be at least 1, or None for all")
    return top_n
