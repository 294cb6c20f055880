"""A scorer turned into an ordering: sort on the raw score, show on one scale, threshold, cut."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from bge_rerank_integrations.calibration import Calibration
from bge_rerank_integrations.cancellation import in_worker, time_limit
from bge_rerank_integrations.cutoffs import Cutoff, keep
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    ScorerContractError,
    ScoringFailed,
)
from bge_rerank_integrations.pairs import check_text
from bge_rerank_integrations.telemetry import rerank_span
from bge_rerank_integrations.trace import RerankTrace, passage_traces, recording
from bge_rerank_integrations.types import (
    CountsTokens,
    FloatArray,
    OnError,
    Pair,
    RerankResult,
    Scale,
    Scorer,
)

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

    With a `calibration` (or its file) the score shown is the probability that it gives. `cutoff`
    has further rules for how many to keep. `on_trace` is called with a `RerankTrace` after each
    rerank that had passages, on the thread that ran it. In a program that has OpenTelemetry loaded
    each is a span too (see `telemetry`), with texts only if `trace_texts`.
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
        calibration: Calibration | str | Path | None = None,
        cutoff: Cutoff | None = None,
        on_trace: Callable[[RerankTrace], object] | None = None,
        trace_texts: bool = False,
    ) -> None:
        self.scorer = scorer
        self.top_n = check_top_n(top_n)
        self.score_threshold = check_threshold(score_threshold)
        self.normalize = normalize
        self.timeout = check_timeout(timeout)
        if on_error not in get_args(OnError):
            raise InvalidInputError(f"on_error is {on_error!r}; it must be 'raise' or 'keep'")
        self.on_error = on_error
        self.calibration = read_calibration(calibration, scorer)
        self.cutoff = check_cutoff(cutoff or Cutoff(), scorer, self.calibration)
        self.on_trace = on_trace
        self.trace_texts = trace_texts

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
        with rerank_span(limit, pairs if self.trace_texts else None) as end_span:
            if self.on_trace is None and end_span is None:
                raw, _ = self._raw_scores(pairs)
                return self._best(raw, pairs, limit)[0]
            results, trace = self._traced(pairs, limit)
            if end_span is not None:
                end_span(trace)
        if self.on_trace is not None:
            self.on_trace(trace)
        return results

    def _traced(
        self, pairs: Sequence[Pair], limit: int | None
    ) -> tuple[list[RerankResult], RerankTrace]:
        begin = time.perf_counter()
        with recording() as recorder:
            raw, failure = self._raw_scores(pairs)
            results, kept_by = self._best(raw, pairs, limit)
        trace = RerankTrace(
            passages=passage_traces(raw, self.shown, results),
            # a server that was not reached has not said which scale it has
            scale=None if np.isnan(raw).all() else self.scorer.scale,
            calibrated=self.calibration is not None,
            kept_by=kept_by,
            failure=None if failure is None else type(failure).__name__,
            counts=recorder.counts,
            seconds={"total": time.perf_counter() - begin, **recorder.seconds},
            facts=recorder.facts,
        )
        return results, trace

    def _best(
        self, raw: FloatArray, pairs: Sequence[Pair], limit: int | None
    ) -> tuple[list[RerankResult], str | None]:
        """What to return, and the rule that decided how many."""
        order = np.argsort(-raw, kind="stable").tolist()  # NaN goes last
        results = [RerankResult(i, self.shown(float(raw[i])), float(raw[i])) for i in order]
        late = [replace(result, scored=False) for result in results if math.isnan(result.raw_score)]
        ranked = results[: len(results) - len(late)]
        kept_by = None
        if self.score_threshold is not None:
            above = [result for result in ranked if result.score >= self.score_threshold]
            if len(above) < len(ranked):
                kept_by = f"score_threshold {self.score_threshold} leaves {len(above)}"
            ranked = above

        def count_tokens(place: int) -> int:
            return token_counter(self.scorer)([pairs[ranked[place].index][1]])[0]

        kept = keep(
            [result.raw_score for result in ranked],
            self.cutoff,
            limit=limit,
            calibration=self.calibration,
            count_tokens=count_tokens,
        )
        return [*ranked[: kept.number], *late][:limit], kept.reason or kept_by

    def _raw_scores(self, pairs: Sequence[Pair]) -> tuple[FloatArray, ScoringFailed | None]:
        """One raw score for each pair; NaN where scoring failed and `on_error` is "keep"."""
        try:
            with time_limit(self.timeout):
                return checked_scores(self.scorer, pairs), None
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
            return raw, error

    async def arerank(
        self, query: str, passages: Sequence[str], top_n: int | None = None
    ) -> list[RerankResult]:
        """`rerank` on a worker thread; cancelling the task stops it between two batches.

        Waiting for a thread counts as part of the `timeout`.
        """
        with time_limit(self.timeout):
            return await in_worker(self.rerank, query, passages, top_n)

    def shown(self, raw_score: float) -> float:
        """The raw score on the scale that is shown: see `normalize` and `calibration`."""
        if math.isnan(raw_score):
            return raw_score
        if self.calibration is not None:
            return self.calibration.probability(raw_score)
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


def read_calibration(given: Calibration | str | Path | None, scorer: Scorer) -> Calibration | None:
    """The calibration, read if it is a file; raises `InvalidInputError` if of another scorer."""
    if given is None:
        return None
    calibration = given if isinstance(given, Calibration) else Calibration.load(given)
    calibration.check_scorer(scorer.name)
    return calibration


def check_cutoff(cutoff: Cutoff, scorer: Scorer, calibration: Calibration | None) -> Cutoff:
    """The cut-off; raises `InvalidInputError` if this scorer or calibration cannot apply it."""
    if cutoff.needs_calibration and calibration is None:
        raise InvalidInputError(
            "min_probability and target_recall need a calibration, which says what a raw score "
            "means on your data: make one with bge-rerank calibrate"
        )
    if cutoff.target_recall is not None and calibration is not None:
        calibration.threshold(cutoff.target_recall)  # too few relevant pairs raise here
    if cutoff.token_budget is not None:
        token_counter(scorer)
    return cutoff


def token_counter(scorer: Scorer) -> Callable[[Sequence[str]], list[int]]:
    """The scorer's `count_tokens`; raises `InvalidInputError` if it has none."""
    if not isinstance(scorer, CountsTokens):
        raise InvalidInputError(
            f"token_budget needs a scorer that can count tokens; {scorer.name} cannot"
        )
    return scorer.count_tokens


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
