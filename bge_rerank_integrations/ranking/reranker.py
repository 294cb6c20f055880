"""Rank passages with a scorer: sort by raw score, show scores on one scale, apply cut-offs."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, Self, Unpack

import numpy as np
from pydantic import Field, InstanceOf

from bge_rerank_integrations.base.contract import (
    CheckedPairs,
    check_scorer,
    check_scores,
    check_text,
    checked_partial,
    show_score,
)
from bge_rerank_integrations.base.deadline import in_worker, time_limit
from bge_rerank_integrations.base.option_group import Place, count_from, read_options, write_out
from bge_rerank_integrations.base.trace import (
    Recorder,
    RerankTrace,
    class_name,
    note,
    passage_traces,
    recording,
)
from bge_rerank_integrations.errors import InvalidInputError, RerankError, ScoringFailed
from bge_rerank_integrations.options import RankingOptions
from bge_rerank_integrations.ranking.calibration import Calibration, ScoreWatch, ranks
from bge_rerank_integrations.ranking.cutoffs import keep, within_budget
from bge_rerank_integrations.ranking.evidence import with_evidence
from bge_rerank_integrations.ranking.passages import PassageLists, Passages, read_passages
from bge_rerank_integrations.ranking.results import RerankResults
from bge_rerank_integrations.ranking.telemetry import rerank_span
from bge_rerank_integrations.types import (
    CountsTokens,
    FloatArray,
    Pair,
    RerankResult,
    Scorer,
    ScoresBest,
)

logger = logging.getLogger("bge_rerank_integrations")

P = ParamSpec("P")
Scoring = Callable[[Sequence[Pair]], FloatArray]
OwnTopN = Literal["own"]
"""The default `top_n` of a call: the reranker's own. None keeps all."""


CalibrationOrFile = Annotated[
    InstanceOf[Calibration] | Place | None,
    Field(description="A `Calibration` or its file: scores are shown as probabilities."),
]


class RerankerOptions(RankingOptions):
    """The options of a `Reranker`."""

    # an adapter's field and a command's flag take only a file
    calibration: CalibrationOrFile = None  # type: ignore[assignment]
    on_trace: Annotated[
        Callable[[RerankTrace], object] | None,
        Field(description="Called with a trace after each rerank that had passages."),
    ] = None


def _with_keywords(
    _cls: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Scorer, P], None]]:
    return lambda function: write_out(function, RerankerOptions)


class Reranker:
    """Sorts passages by a scorer's scores.

    `top_n` is the maximum number of results (`None`: all); `score_threshold` is the minimum score,
    on the scale that is shown. With `normalize` a logit is shown as its sigmoid, in (0, 1); cosines
    and probabilities are shown unchanged. Passages are always sorted by raw score, because
    different logits can have equal sigmoids; ties keep the caller's order.

    `timeout` limits the seconds of one rerank, not counting the time to load the model; scorers
    check it between batches or requests. If it passes, or scoring fails otherwise
    (`ScoringFailed`), `on_error="raise"` raises. `"keep"` logs a warning and ranks the scored
    passages; the others follow in the caller's order with `scored=False`, and only `top_n` and
    `token_budget` cut them. All other errors (of input, model files or code) always raise.

    With a `calibration` (or its file) the score is shown as a probability of relevance. See
    `CutoffOptions` for further cut-offs. With `explain` the sentences of the kept passages are
    scored too, in one more call, and each result gets the best one as its `evidence`; if that
    fails, "keep" returns the ranking without evidence. `on_trace` is called with a `RerankTrace`
    after each rerank that had passages, on the thread that ran it. If the program has loaded
    OpenTelemetry, each rerank is also a span (see `telemetry`), with texts only if `trace_texts`.
    """

    @_with_keywords(RerankerOptions)
    def __init__(self, scorer: Scorer, **options: Any) -> None:
        check_scorer(scorer, "scorer")
        self.scorer = scorer
        self._set(read_options(RerankerOptions, options, caller="Reranker"))

    @classmethod
    def from_options(cls, scorer: Scorer, options: RankingOptions) -> Self:
        """A reranker with validated options."""
        check_scorer(scorer, "scorer")
        reranker = cls.__new__(cls)
        reranker.scorer = scorer
        reranker._set(options)  # noqa: SLF001  # of this class
        return reranker

    def _set(self, options: RankingOptions) -> None:
        given: Calibration | str | Path | None = options.calibration
        calibration = Calibration.load(given) if isinstance(given, str | Path) else given
        if calibration is not None:
            calibration.check_scorer(self.scorer.name)
            if options.target_recall is not None:
                calibration.threshold(options.target_recall)  # raises for too few relevant pairs
        elif options.needs_calibration:
            raise InvalidInputError(
                "min_probability and target_recall need a calibration, which says what a raw score "
                "means on your data: make one with bge-rerank calibrate"
            )
        if isinstance(self.scorer, ScoresBest) and (calibration or options.min_n is not None):
            raise InvalidInputError(
                "calibration and min_n need the exact score of every passage: leave draft out"
            )
        highest = 1.0 if options.normalize or calibration is not None else math.inf
        threshold = options.score_threshold
        if threshold is not None and threshold > highest:
            raise InvalidInputError(
                f"score_threshold is {threshold}, but no score that is shown is above {highest:g}, "
                "so nothing would be kept: give one on that scale, or normalize=False and no "
                "calibration for a threshold on raw scores"
            )
        self.calibration = calibration
        self.options = options
        self.on_trace = options.on_trace if isinstance(options, RerankerOptions) else None
        self.warned_of_blanks = False
        self._watch = None if calibration is None else ScoreWatch(calibration)
        if options.token_budget is not None:
            self._count_tokens([])  # raises now for a scorer that cannot

    def __repr__(self) -> str:
        own = vars(self)  # incomplete if an option was refused
        parts = [repr(own["scorer"].name)] if own else []
        if (options := own.get("options")) is not None:
            shown = ("top_n", "score_threshold", "normalize", "timeout", "on_error", "explain")
            parts += [f"{name}={getattr(options, name)!r}" for name in shown]
        return f"Reranker({', '.join(parts)})"

    def rerank(
        self,
        query: str,
        passages: Iterable[str],
        top_n: int | OwnTopN | None = "own",
        **lists: Unpack[PassageLists],
    ) -> RerankResults:
        """Return the passages, best first; a `top_n` overrides the reranker's own, None keeps all.

        Each result has its `passage` and its `index` in `passages`, which is not changed. For other
        keywords see `PassageLists`. A passage without text is not scored: see `no_text`. The first
        blank query logs a warning. An empty list gives no results and does not call the scorer.
        Raises `InvalidInputError` for a query or passage that is not text, for passages that have
        no order or are a table, for a `top_n` below 1 and for an unknown keyword, and whatever the
        scorer raises.
        """
        limit = self.options.top_n if top_n == "own" else check_top_n(top_n)
        with time_limit(self.options.timeout):
            given = read_passages(query, passages, lists, self.options)
            if not given.pairs:
                return RerankResults()
            if not self.warned_of_blanks and (about := given.warning(self.options)):
                self.warned_of_blanks = True
                logger.warning("%s. Logged once per reranker.", about)
            call = _Call(given, limit, np.full(len(given.pairs), np.nan, dtype=np.float32))
            texts = given.pairs if self.options.trace_texts else None
            with rerank_span(limit, texts, wanted=self.options.otel_span) as end_span:
                if self.on_trace is None and end_span is None:
                    self._run(call)
                    return RerankResults(call.results)
                begin = time.perf_counter()
                with recording() as recorder:
                    self._run(call)
                trace = self._trace(call, recorder, time.perf_counter() - begin)
                if end_span is not None:
                    end_span(trace)
        if self.on_trace is not None:
            self.on_trace(trace)
        return RerankResults(call.results)

    def _trace(self, call: "_Call", recorder: Recorder, total: float) -> RerankTrace:
        seconds = {"total": total, **recorder.seconds}
        if self.options.explain:
            seconds["explaining"] = call.explaining
        return RerankTrace(
            passages=passage_traces(call.raw, self.shown_scores(call.raw), call.results),
            # the scale of a server that was not reached is unknown
            scale=None if np.isnan(call.raw).all() else self.scorer.scale,
            calibrated=self.calibration is not None,
            kept_by=call.kept_by,
            failure=class_name(call.failure),
            evidence_failure=class_name(call.evidence_failure),
            counts=dict(recorder.counts),
            seconds=seconds,
            facts=recorder.facts,
        )

    def _run(self, call: "_Call") -> None:
        """Score, rank and explain."""
        passages = call.passages
        if passages.duplicates:
            note({"duplicates": passages.duplicates})
        if passages.scored:
            chosen = CheckedPairs([passages.pairs[index] for index in passages.scored])
            score, limit = self.scorer.score, call.limit
            some_are_cut = self.options.score_threshold is not None or (
                limit is not None and limit < len(chosen)
            )
            if some_are_cut and isinstance(self.scorer, ScoresBest):
                score = partial(self.scorer.score_best, limit=limit, is_kept=self._is_above)
            try:
                call.raw[passages.scored], call.failure = self._raw_scores(chosen, score)
            except RerankError as error:
                if isinstance(error, ScoringFailed):
                    call.raw[passages.scored] = checked_partial(error, len(chosen))
                    error.partial = call.raw
                if len(chosen) < len(passages.pairs):
                    error.add_note("positions count only the passages that are scored")
                raise
            if self._watch is not None:
                self._watch.observe(call.raw)
        if call.failure is not None:
            logger.warning(
                "%d of %d passages were not scored and keep the order they came in: %s: %s",
                int(np.isnan(call.raw[passages.scored]).sum()),
                len(passages.pairs),
                type(call.failure).__name__,
                call.failure,
            )
        self._rank(call)
        # after a failure, scoring the sentences would most likely fail as well
        if self.options.explain and call.failure is None:
            self._explain(call)

    def _rank(self, call: "_Call") -> None:
        """Set the results, best first, and the rule that cut them.

        Ties keep the caller's order. Passages without a score (NaN) follow with `scored=False`,
        then blank ones; only the limit and token_budget cut them.
        """
        passages, raw = call.passages, call.raw
        chosen = np.asarray(passages.scored, dtype=np.intp)
        order = chosen[np.argsort(-raw[chosen], kind="stable")]  # NaN goes last
        scored = int((~np.isnan(raw[chosen])).sum())
        ranked, late = order[:scored].tolist(), [*order[scored:].tolist(), *passages.late]
        places = np.zeros(len(raw), dtype=np.intp) if self.calibration is None else ranks(raw)

        def result(index: int) -> RerankResult:
            number, passage = float(raw[index]), passages.given[index]
            if math.isnan(number):  # one NaN object, so that equal results compare equal
                return RerankResult(index, math.nan, math.nan, scored=False, passage=passage)
            shown = self.shown(number, int(places[index]))
            return RerankResult(index, shown, number, passage=passage)

        def tokens(index: int) -> int:
            return self._count_tokens([check_text(passages.read[index], "read text", index)])[0]

        if (threshold := self.options.score_threshold) is not None:
            above = [
                *takewhile(
                    lambda index: self._is_above(float(raw[index]), int(places[index])), ranked
                )
            ]
            if len(above) < len(ranked):
                call.kept_by = f"score_threshold {threshold} leaves {len(above)}"
            ranked = above
        kept = keep(
            raw[ranked].tolist(),
            self.options,
            limit=call.limit,
            calibration=self.calibration,
            count_tokens=lambda place: tokens(ranked[place]),
        )
        indices = [*ranked[: kept.number], *late][: call.limit]
        call.kept_by = kept.reason or call.kept_by
        if late and (budget := self.options.token_budget) is not None:
            fit = within_budget(len(indices), budget, lambda place: tokens(indices[place]))
            if (number := max(fit, kept.number)) < len(indices):
                del indices[number:]
                call.kept_by = f"token_budget {budget} leaves {number}"
        call.results = [*map(result, indices)]

    def _explain(self, call: "_Call") -> None:
        """Add evidence to the results."""
        begin = time.perf_counter()

        def score(sentences: Sequence[Pair]) -> FloatArray:
            raw, call.evidence_failure = self._raw_scores(sentences, self.scorer.score)
            return raw

        try:
            call.results = with_evidence(
                call.results, call.passages.pairs, call.passages.own, score=score, shown=self.shown
            )
        except RerankError as error:
            failed = error if isinstance(error, ScoringFailed) else None
            if failed is None or self.options.on_error == "raise":
                if failed is not None:
                    failed.partial = call.raw
                error.add_note(
                    "all passages were scored, but scoring their sentences for explain failed; "
                    "positions count sentences"
                )
                raise
            call.evidence_failure = failed
        if call.evidence_failure is not None:
            logger.warning(
                "%d of %d passages are left without evidence: %s: %s",
                sum(result.evidence is None for result in call.results),
                len(call.results),
                type(call.evidence_failure).__name__,
                call.evidence_failure,
            )
        call.explaining = time.perf_counter() - begin

    def _is_above(self, raw_score: float, rank: int = 0) -> bool:
        """Whether the score, as it is shown, reaches the threshold."""
        low, shown = self.options.score_threshold, self.shown(raw_score, rank)
        # a raw score is a float32, so it is compared in float32: a server's 0.9 is not below 0.9
        return low is None or shown >= (float(np.float32(low)) if shown == raw_score else low)

    def _raw_scores(
        self, pairs: Sequence[Pair], score: Scoring
    ) -> tuple[FloatArray, ScoringFailed | None]:
        """One raw score for each pair; NaN where scoring failed and `on_error` is "keep"."""
        try:
            return check_scores(score(pairs), self.scorer, len(pairs)), None
        except ScoringFailed as error:
            if self.options.on_error == "raise":
                raise
            return checked_partial(error, len(pairs)), error

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        if not isinstance(self.scorer, CountsTokens):
            raise InvalidInputError(
                f"token_budget needs a scorer that can count tokens; {self.scorer.name} cannot"
            )
        return self.scorer.count_tokens(texts)

    async def arerank(
        self,
        query: str,
        passages: Sequence[str],
        top_n: int | OwnTopN | None = "own",
        **lists: Unpack[PassageLists],
    ) -> RerankResults:
        """`rerank` on a worker thread; cancelling the task stops it between two batches.

        Waiting for a thread counts as part of the `timeout`.
        """
        with time_limit(self.options.timeout):
            return await in_worker(self.rerank, query, passages, top_n, **lists)

    def shown_scores(self, raw_scores: FloatArray) -> list[float]:
        """All raw scores of a query on the scale that is shown; NaN stays."""
        raw = raw_scores.tolist()
        places = [0] * len(raw) if self.calibration is None else ranks(raw_scores).tolist()
        return [self.shown(score, place) for score, place in zip(raw, places, strict=True)]

    def shown(self, raw_score: float, rank: int = 0) -> float:
        """The raw score on the scale that is shown: see `normalize` and `calibration`.

        A calibration also uses the `rank`, from 0.
        """
        if math.isnan(raw_score):
            return raw_score
        if self.calibration is not None:
            return self.calibration.probability(raw_score, rank)
        return show_score(raw_score, self.scorer.scale, normalize=self.options.normalize)


@dataclass(slots=True)
class _Call:
    """One rerank: its passages, the maximum number of results, and the outcome."""

    passages: Passages
    limit: int | None
    raw: FloatArray
    results: list[RerankResult] = field(default_factory=list)
    kept_by: str | None = None
    failure: ScoringFailed | None = None
    evidence_failure: ScoringFailed | None = None
    explaining: float = 0.0


def check_top_n(top_n: object) -> int | None:
    """Return `top_n`; raise `InvalidInputError` unless it is None or a whole number from 1."""
    return None if top_n is None else count_from(1, top_n, "top_n", ", or None for all")
