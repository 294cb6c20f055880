"""A scorer turned into an ordering: sort on the raw score, show on one scale, threshold, cut."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.base.deadline import in_worker, time_limit
from bge_rerank_integrations.base.raw_scores import checked_partial, checked_scores, show_score
from bge_rerank_integrations.base.trace import (
    RerankTrace,
    class_name,
    passage_traces,
    recording,
)
from bge_rerank_integrations.errors import RerankError, ScoringFailed
from bge_rerank_integrations.option_checks import check_scorer
from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.ranking.cutoffs import Cutoff
from bge_rerank_integrations.ranking.evidence import with_evidence
from bge_rerank_integrations.ranking.ordering import best_first
from bge_rerank_integrations.ranking.rerank_options import (
    about_blanks,
    check_cutoff,
    check_evidence_texts,
    check_on_error,
    check_texts,
    check_threshold,
    check_timeout,
    check_top_n,
    read_calibration,
    token_counter,
)
from bge_rerank_integrations.ranking.rerank_results import RerankResults
from bge_rerank_integrations.ranking.telemetry import rerank_span
from bge_rerank_integrations.types import FloatArray, OnError, Pair, RerankResult, Scorer

logger = logging.getLogger("bge_rerank_integrations")

SHOWN = ("top_n", "score_threshold", "normalize", "timeout", "on_error", "explain")


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
    has further rules for how many to keep. With `explain` the sentences of what is kept are scored
    too, in one more call, and each result has the best one as its `evidence`; if that fails, "keep"
    leaves the ranking without evidence. `on_trace` is called with a `RerankTrace` after each
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
        explain: bool = False,
        on_trace: Callable[[RerankTrace], object] | None = None,
        trace_texts: bool = False,
    ) -> None:
        check_scorer(scorer, "scorer")
        self.scorer = scorer
        self.top_n = check_top_n(top_n)
        highest = 1.0 if normalize or calibration is not None else math.inf
        self.score_threshold = check_threshold(score_threshold, most=highest)
        self.normalize = normalize
        self.timeout = check_timeout(timeout)
        self.on_error = check_on_error(on_error)
        self.calibration = read_calibration(calibration, scorer)
        self.cutoff = check_cutoff(cutoff, scorer, self.calibration)
        self.explain = explain
        self.on_trace = on_trace
        self.trace_texts = trace_texts
        self._told_of_blanks = False

    def __repr__(self) -> str:
        own = vars(self)  # not all is there where an option was refused
        said = [repr(own["scorer"].name)] if own else []
        said += [f"{option}={own[option]!r}" for option in SHOWN if option in own]
        return f"Reranker({', '.join(said)})"

    def rerank(
        self,
        query: str,
        passages: Iterable[str],
        top_n: int | None = None,
        *,
        evidence_texts: Iterable[str] | None = None,
    ) -> RerankResults:
        """Return the best passages first; `top_n` overrides the reranker's own for this call.

        Each result's `index` points into `passages`, which are left as they are. `evidence_texts`,
        one for each passage, are what `explain` looks for sentences in, and what offsets point
        into, where a passage is more than that: a title put before a text. No passages give no
        results, without touching the scorer; empty ones are scored, and the log is told once.
        Raises `InvalidInputError` for a query or passage that is not text, for passages that have
        no order or are a table, and for a `top_n` below 1, and whatever the scorer raises.
        """
        limit = self.top_n if top_n is None else check_top_n(top_n)
        query = check_text(query, "query")
        given = check_texts(passages, "passage")
        texts = check_evidence_texts(evidence_texts, given)
        pairs = [(query, check_text(passage, "passage")) for passage in given]
        if not pairs:
            return RerankResults()
        if not self._told_of_blanks and (about := about_blanks(query, given)):
            self._told_of_blanks = True
            logger.warning("%s. Said once for this reranker.", about)
        with rerank_span(limit, pairs if self.trace_texts else None) as end_span:
            if self.on_trace is None and end_span is None:
                return RerankResults(self._ranking(pairs, limit, texts).results)
            results, trace = self._traced(pairs, limit, texts)
            if end_span is not None:
                end_span(trace)
        if self.on_trace is not None:
            self.on_trace(trace)
        return RerankResults(results)

    def _traced(
        self, pairs: Sequence[Pair], limit: int | None, texts: Sequence[str]
    ) -> tuple[list[RerankResult], RerankTrace]:
        begin = time.perf_counter()
        with recording() as recorder:
            done = self._ranking(pairs, limit, texts)
        seconds = {"total": time.perf_counter() - begin, **recorder.seconds}
        if self.explain:
            seconds["explaining"] = done.explaining
        trace = RerankTrace(
            passages=passage_traces(done.raw, self.shown, done.results),
            # a server that was not reached has not said which scale it has
            scale=None if np.isnan(done.raw).all() else self.scorer.scale,
            calibrated=self.calibration is not None,
            kept_by=done.kept_by,
            failure=class_name(done.failure),
            evidence_failure=class_name(done.evidence_failure),
            counts=recorder.counts,
            seconds=seconds,
            facts=recorder.facts,
        )
        return done.results, trace

    def _ranking(
        self, pairs: Sequence[Pair], limit: int | None, texts: Sequence[str]
    ) -> "_Ranking":
        with time_limit(self.timeout):
            raw, failure = self._raw_scores(pairs)
            if failure is not None:
                logger.warning(
                    "%d of %d passages were not scored and keep the order they came in: %s: %s",
                    int(np.isnan(raw).sum()),
                    len(pairs),
                    type(failure).__name__,
                    failure,
                )
            results, kept_by = best_first(
                raw,
                shown=self.shown,
                score_threshold=self.score_threshold,
                cutoff=self.cutoff,
                limit=limit,
                calibration=self.calibration,
                count_tokens=lambda index: token_counter(self.scorer)([pairs[index][1]])[0],
            )
            ranking = _Ranking(results, kept_by, raw, failure)
            # what just failed would fail again, and take its time again
            if self.explain and failure is None:
                self._add_evidence(ranking, pairs, texts)
        return ranking

    def _add_evidence(
        self, ranking: "_Ranking", pairs: Sequence[Pair], texts: Sequence[str]
    ) -> None:
        begin = time.perf_counter()

        def score(sentences: Sequence[Pair]) -> FloatArray:
            raw, ranking.evidence_failure = self._raw_scores(sentences)
            return raw

        try:
            ranking.results = with_evidence(
                ranking.results, pairs, texts, score=score, shown=self.shown
            )
        except RerankError as error:
            if not isinstance(error, ScoringFailed) or self.on_error == "raise":
                if isinstance(error, ScoringFailed):
                    error.partial = ranking.raw
                error.add_note(
                    "all passages were scored; scoring their sentences for explain failed, and "
                    "positions count sentences"
                )
                raise
            ranking.evidence_failure = error
        if ranking.evidence_failure is not None:
            logger.warning(
                "%d of %d passages are left without evidence: %s: %s",
                sum(result.evidence is None for result in ranking.results),
                len(ranking.results),
                type(ranking.evidence_failure).__name__,
                ranking.evidence_failure,
            )
        ranking.explaining = time.perf_counter() - begin

    def _raw_scores(self, pairs: Sequence[Pair]) -> tuple[FloatArray, ScoringFailed | None]:
        """One raw score for each pair; NaN where scoring failed and `on_error` is "keep"."""
        try:
            return checked_scores(self.scorer, pairs), None
        except ScoringFailed as error:
            if self.on_error == "raise":
                raise
            return checked_partial(error, len(pairs)), error

    async def arerank(
        self,
        query: str,
        passages: Sequence[str],
        top_n: int | None = None,
        *,
        evidence_texts: Sequence[str] | None = None,
    ) -> RerankResults:
        """`rerank` on a worker thread; cancelling the task stops it between two batches.

        Waiting for a thread counts as part of the `timeout`.
        """
        with time_limit(self.timeout):
            return await in_worker(
                self.rerank, query, passages, top_n, evidence_texts=evidence_texts
            )

    def shown(self, raw_score: float) -> float:
        """The raw score on the scale that is shown: see `normalize` and `calibration`."""
        if math.isnan(raw_score):
            return raw_score
        if self.calibration is not None:
            return self.calibration.probability(raw_score)
        return show_score(raw_score, self.scorer.scale, normalize=self.normalize)


@dataclass(slots=True)
class _Ranking:
    """What came of a rerank: the results, what decided how many, every raw score, what failed."""

    results: list[RerankResult]
    kept_by: str | None
    raw: FloatArray
    failure: ScoringFailed | None
    evidence_failure: ScoringFailed | None = None
    explaining: float = 0.0
