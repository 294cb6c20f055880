"""A scorer turned into an ordering: sort on the raw score, show on one scale, threshold, cut."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Self,
    SupportsIndex,
    TypedDict,
    Unpack,
    overload,
)

import numpy as np
from pydantic import Field, InstanceOf

from bge_rerank_integrations.base.contract import (
    CheckedPairs,
    check_scorer,
    check_scores,
    check_several,
    check_str,
    check_text,
    checked_partial,
    is_blank,
    show_score,
)
from bge_rerank_integrations.base.deadline import cancellable, in_worker, time_limit
from bge_rerank_integrations.base.html import html_table
from bge_rerank_integrations.base.trace import (
    Recorder,
    RerankTrace,
    class_name,
    note,
    passage_traces,
    recording,
)
from bge_rerank_integrations.errors import InvalidInputError, RerankError, ScoringFailed
from bge_rerank_integrations.options import (
    Place,
    RankingOptions,
    count_from,
    no_such_option,
    read_options,
    write_out,
)
from bge_rerank_integrations.ranking.calibration import Calibration, ScoreWatch, ranks
from bge_rerank_integrations.ranking.cutoffs import keep, within_budget
from bge_rerank_integrations.ranking.evidence import with_evidence
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

REMEDY = "[text, ...], such as the values of a dict or one column of a table"

P = ParamSpec("P")
Scoring = Callable[[Sequence[Pair]], FloatArray]
OwnTopN = Literal["own"]
"""The `top_n` of a call that leaves it to the reranker: None keeps all."""


class Beside(TypedDict, total=False):
    """Lists with one item for each passage, where a passage is more than its own text.

    `evidence_texts` are the passages' own texts, without a title put before them: `explain` looks
    for sentences in them, `no_text` and `drop_duplicates` judge them. `read_texts` are the texts
    that will be read in the end, which `token_budget` counts. `ids` are for `drop_duplicates`.
    """

    evidence_texts: Iterable[str] | None
    read_texts: Iterable[str] | None
    ids: Iterable[str | None] | None


CalibrationOrFile = Annotated[
    InstanceOf[Calibration] | Place | None,
    Field(description="A `Calibration` or its file: scores are shown as probabilities."),
]


class RerankerOptions(RankingOptions):
    """The options of a `Reranker`."""

    # what can be written down, an adapter's fields or a flag, is a file
    calibration: CalibrationOrFile = None  # type: ignore[assignment]
    on_trace: Annotated[
        Callable[[RerankTrace], object] | None,
        Field(description="Called with a trace after each rerank that had passages."),
    ] = None


def _with_keywords(
    _cls: Callable[P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Scorer, P], None]]:
    return lambda function: write_out(function, RerankerOptions)


class RerankResults(list[RerankResult]):
    """The results of a rerank, best first: a list like any other, with a table for notebooks.

    It holds no passages, so the table shows none. A slice or a copy of it is one too.
    """

    @overload
    def __getitem__(self, place: SupportsIndex) -> RerankResult: ...

    @overload
    def __getitem__(self, place: slice) -> "RerankResults": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "RerankResult | RerankResults":
        if isinstance(place, slice):
            return RerankResults(super().__getitem__(place))
        return super().__getitem__(place)

    def copy(self) -> "RerankResults":
        return RerankResults(self)

    def _repr_html_(self) -> str:
        """A row for each result: its place here and the one it had, both from 1, and its scores.

        Whether it was scored, and where its evidence lies, have columns if a result needs them.
        """
        columns: dict[str, list[object]] = {
            "place": [*range(1, len(self) + 1)],
            "was": [result.index + 1 for result in self],
            "index": [result.index for result in self],
            "score": [result.score if result.scored else None for result in self],
            "raw score": [result.raw_score if result.scored else None for result in self],
        }
        if not all(result.scored for result in self):
            columns["scored"] = ["yes" if result.scored else "no" for result in self]
        found = [result.evidence for result in self]
        if any(found):
            columns["evidence"] = [one and f"{one.start}:{one.end}" for one in found]
            columns["evidence score"] = [one and one.score for one in found]
        return html_table([*columns], zip(*columns.values(), strict=True))


class Reranker:
    """Orders passages by a scorer's scores.

    `top_n` keeps that many results (`None`: all), `score_threshold` those whose shown score is at
    least that. With `normalize` a logit is shown as its sigmoid, in (0, 1); cosines and
    probabilities are shown as they are. The order is always that of the raw scores, because a
    sigmoid makes ties of logits that differ; equal raw scores keep the caller's order.

    `timeout` is the time in seconds that one rerank may take, loading the model apart; scorers look
    at it between two batches or requests. When it passes, or scoring fails otherwise
    (`ScoringFailed`), `on_error="raise"` raises. `"keep"` says so in the log and ranks what is
    scored; the rest follows in the caller's order with `scored` False, whatever the cut-offs, but
    for `top_n` and `token_budget`. Errors of the input, of loading and of programs always raise.

    With a `calibration` (or its file) the score shown is the probability that it gives. `cutoff`
    has further rules for how many to keep. With `explain` the sentences of what is kept are scored
    too, in one more call, and each result has the best one as its `evidence`; if that fails, "keep"
    leaves the ranking without evidence. `on_trace` is called with a `RerankTrace` after each
    rerank that had passages, on the thread that ran it. In a program that has OpenTelemetry loaded
    each is a span too (see `telemetry`), with texts only if `trace_texts`.
    """

    @_with_keywords(RerankerOptions)
    def __init__(self, scorer: Scorer, **options: Any) -> None:
        check_scorer(scorer, "scorer")
        self.scorer = scorer
        self._set(read_options(RerankerOptions, options, caller="Reranker"))

    @classmethod
    def from_options(cls, scorer: Scorer, options: RankingOptions) -> Self:
        """A reranker with options that are read already."""
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
                calibration.threshold(options.target_recall)  # too few relevant pairs raise here
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
                f"score_threshold is {threshold}, and no score that is shown is above {highest:g}, "
                "so nothing would be kept: give one on that scale, or normalize=False and no "
                "calibration for a threshold on raw scores"
            )
        self.calibration = calibration
        self.options = options
        self.on_trace = options.on_trace if isinstance(options, RerankerOptions) else None
        self.told_of_blanks = self.told_of_scores = False
        self._watch = None if calibration is None else ScoreWatch(calibration)
        if options.token_budget is not None:
            self._count_tokens([])  # raises here for a scorer that cannot

    def __repr__(self) -> str:
        own = vars(self)  # not all is there where an option was refused
        said = [repr(own["scorer"].name)] if own else []
        if (options := own.get("options")) is not None:
            shown = ("top_n", "score_threshold", "normalize", "timeout", "on_error", "explain")
            said += [f"{name}={getattr(options, name)!r}" for name in shown]
        return f"Reranker({', '.join(said)})"

    def rerank(
        self,
        query: str,
        passages: Iterable[str],
        top_n: int | OwnTopN | None = "own",
        **beside: Unpack[Beside],
    ) -> RerankResults:
        """Return the best passages first; `top_n` is the reranker's own unless given, and None all.

        Each result has its `passage`, and its `index` in `passages`, which are left as they are;
        for `beside` see `Beside`. A passage without text is not scored: see `no_text`; a blank
        query is told to the log once. No passages give no results, without touching the scorer.
        Raises `InvalidInputError` for a query or passage that is not text, for passages that have
        no order or are a table, for a `top_n` below 1 and for an option that it does not have, and
        whatever the scorer raises.
        """
        for name in beside.keys() - Beside.__annotations__.keys():
            known = ["top_n", *Beside.__annotations__]
            raise InvalidInputError(no_such_option(name, known, "rerank"))
        started = time.monotonic()
        limit = self.options.top_n if top_n == "own" else check_top_n(top_n)
        query = check_text(query, "query")
        given = list(check_several(passages, "passages", REMEDY))
        pairs = CheckedPairs(
            [(query, check_text(text, "passage", i)) for i, text in enumerate(cancellable(given))]
        )
        own = _one_for_each(beside.get("evidence_texts"), given, "evidence text")
        read = _one_for_each(beside.get("read_texts"), given, "read text")
        if not pairs:
            return RerankResults()
        texts = zip(own, strict=True) if own is given else zip(own, given, strict=True)
        blank = {i for i, some in enumerate(cancellable(texts)) if any(map(is_blank, some))}
        if self.options.no_text == "raise":
            refuse_blanks(blank, lambda index: f"the passage at position {index}")
        told = blank if self.options.no_text == "last" else ()
        if not self.told_of_blanks and (about := _about_blanks(query, given, told)):
            self.told_of_blanks = True
            logger.warning("%s. Said once for this reranker.", about)
        kept = list(range(len(pairs)))
        if self.options.drop_duplicates:
            kept = _first_of_equals(own, beside.get("ids"), blank)
        call = _Call(
            pairs=pairs,
            given=given,
            own=own,
            read=read,
            scored=[index for index in kept if index not in blank],
            late=self.options.blanks_kept([index for index in kept if index in blank]),
            duplicates=len(pairs) - len(kept),
            limit=limit,
            raw=np.full(len(pairs), np.nan, dtype=np.float32),
            started=started,
        )
        span = rerank_span(limit, pairs if self.options.trace_texts else None)
        with span if self.options.otel_span else nullcontext() as end_span:
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
            passages=passage_traces(call.raw, call.shown, call.results),
            # a server that was not reached has not said which scale it has
            scale=None if np.isnan(call.raw).all() else self.scorer.scale,
            calibrated=self.calibration is not None,
            kept_by=call.kept_by,
            failure=class_name(call.failure),
            evidence_failure=class_name(call.evidence_failure),
            counts=recorder.counts,
            seconds=seconds,
            facts=recorder.facts,
        )

    def _run(self, call: "_Call") -> None:
        """Score, rank and explain within the time limit."""
        if call.duplicates:
            note({"duplicates": call.duplicates})
        timeout = self.options.timeout
        if timeout is not None:
            timeout = max(0.0, timeout - (time.monotonic() - call.started))
        with time_limit(timeout):
            if call.scored:
                chosen = CheckedPairs([call.pairs[index] for index in call.scored])
                try:
                    call.raw[call.scored], call.failure = self._raw_scores(
                        chosen, self._best_scorer(call.limit, len(chosen))
                    )
                except RerankError as error:
                    if isinstance(error, ScoringFailed):
                        call.raw[call.scored] = checked_partial(error, len(chosen))
                        error.partial = call.raw
                    if len(chosen) < len(call.pairs):
                        error.add_note("positions do not count the passages that are not scored")
                    raise
            if call.failure is not None:
                logger.warning(
                    "%d of %d passages were not scored and keep the order they came in: %s: %s",
                    int(np.isnan(call.raw[call.scored]).sum()),
                    len(call.pairs),
                    type(call.failure).__name__,
                    call.failure,
                )
            if call.scored and self._watch is not None:
                self._note_unlike(self._watch.unlike(call.raw))
            self._rank(call)
            # what just failed would fail again, and take its time again
            if self.options.explain and call.failure is None:
                self._explain(call)

    def _note_unlike(self, index: float | None) -> None:
        if index is None:
            return
        said = f"recent scores are unlike those of the fit, population stability index {index:.2f}"
        note({}, {"calibration": said})
        if not self.told_of_scores:
            self.told_of_scores = True
            logger.warning(
                "calibration: %s. Probabilities may be wrong: calibrate again on queries and "
                "passages like these. Said once for this reranker.",
                said,
            )

    def _rank(self, call: "_Call") -> None:
        """Set the results, best first, and the rule that cut them.

        Equal raw scores keep the caller's order. A passage without a score (NaN) follows with
        `scored` False, whatever the other cut-offs, if limit and token_budget leave room, and then
        blank ones.
        """

        def result(index: int) -> RerankResult:
            raw, passage = float(call.raw[index]), call.given[index]
            if math.isnan(raw):  # the same object, so that equal results compare equal
                return RerankResult(index, math.nan, math.nan, scored=False, passage=passage)
            return RerankResult(index, call.shown[index], raw, passage=passage)

        def tokens(some: Sequence[RerankResult], place: int) -> int:
            index = some[place].index
            return self._count_tokens([check_text(call.read[index], "read text", index)])[0]

        call.shown = self.shown_scores(call.raw)
        scored = np.asarray(call.scored, dtype=np.intp)
        order = scored[np.argsort(-call.raw[scored], kind="stable")].tolist()  # NaN goes last
        found = [result(index) for index in [*order, *call.late]]
        ranked, late = [r for r in found if r.scored], [r for r in found if not r.scored]
        if (least := self.options.score_threshold) is not None:
            # a score that is shown as it is has float32's digits: a server's 0.9 is not below 0.9
            rounded = float(np.float32(least))
            above = [r for r in ranked if r.score >= (rounded if r.score == r.raw_score else least)]
            if len(above) < len(ranked):
                call.kept_by = f"score_threshold {least} leaves {len(above)}"
            ranked = above
        kept = keep(
            [result.raw_score for result in ranked],
            self.options,
            limit=call.limit,
            calibration=self.calibration,
            count_tokens=partial(tokens, ranked),
        )
        call.results = [*ranked[: kept.number], *late][: call.limit]
        call.kept_by = kept.reason or call.kept_by
        if late and (budget := self.options.token_budget) is not None:
            fit = within_budget(len(call.results), budget, partial(tokens, call.results))
            if (number := max(fit, kept.number)) < len(call.results):
                del call.results[number:]
                call.kept_by = f"token_budget {budget} leaves {number}"

    def _explain(self, call: "_Call") -> None:
        """Add evidence to the results."""
        begin = time.perf_counter()

        def score(sentences: Sequence[Pair]) -> FloatArray:
            raw, call.evidence_failure = self._raw_scores(sentences)
            return raw

        try:
            call.results = with_evidence(
                call.results, call.pairs, call.own, score=score, shown=self.shown
            )
        except RerankError as error:
            failed = error if isinstance(error, ScoringFailed) else None
            if failed is None or self.options.on_error == "raise":
                if failed is not None:
                    failed.partial = call.raw
                error.add_note(
                    "all passages were scored; scoring their sentences for explain failed, and "
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

    def _best_scorer(self, limit: int | None, passages: int) -> Scoring | None:
        """The scoring of a draft, exact for what can be a result; None where all are scored."""
        least = self.options.score_threshold
        if not isinstance(self.scorer, ScoresBest) or (
            least is None and (limit is None or limit >= passages)
        ):
            return None
        floor = -math.inf if least is None else min(least, float(np.float32(least)))
        return partial(
            self.scorer.score_best, limit=limit, is_kept=lambda raw: self.shown(raw) >= floor
        )

    def _raw_scores(
        self, pairs: Sequence[Pair], score: Scoring | None = None
    ) -> tuple[FloatArray, ScoringFailed | None]:
        """One raw score for each pair; NaN where scoring failed and `on_error` is "keep"."""
        score = score or self.scorer.score
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
        **beside: Unpack[Beside],
    ) -> RerankResults:
        """`rerank` on a worker thread; cancelling the task stops it between two batches.

        Waiting for a thread counts as part of the `timeout`.
        """
        with time_limit(self.options.timeout):
            return await in_worker(self.rerank, query, passages, top_n, **beside)

    def shown_scores(self, raw_scores: FloatArray) -> list[float]:
        """All raw scores of a query on the scale that is shown; NaN stays."""
        raw = raw_scores.tolist()
        places = [0] * len(raw) if self.calibration is None else ranks(raw_scores).tolist()
        return [self.shown(score, place) for score, place in zip(raw, places, strict=True)]

    def shown(self, raw_score: float, rank: int = 0) -> float:
        """The raw score on the scale that is shown: see `normalize` and `calibration`.

        A calibration also reads the `rank`, from 0.
        """
        if math.isnan(raw_score):
            return raw_score
        if self.calibration is not None:
            return self.calibration.probability(raw_score, rank)
        return show_score(raw_score, self.scorer.scale, normalize=self.options.normalize)


@dataclass(slots=True)
class _Call:
    """One rerank: each passage, the positions to score and those that come last, the outcome."""

    pairs: CheckedPairs
    given: Sequence[str]
    own: Sequence[str]
    read: Sequence[str]
    scored: Sequence[int]
    late: Sequence[int]
    duplicates: int
    limit: int | None
    raw: FloatArray
    started: float
    shown: list[float] = field(default_factory=list)
    results: list[RerankResult] = field(default_factory=list)
    kept_by: str | None = None
    failure: ScoringFailed | None = None
    evidence_failure: ScoringFailed | None = None
    explaining: float = 0.0


def check_top_n(top_n: object) -> int | None:
    """Return `top_n`; raise `InvalidInputError` unless it is None or a whole number from 1."""
    return None if top_n is None else count_from(1, top_n, "top_n", ", or None for all")


def _one_for_each(texts: Iterable[str] | None, passages: list[str], what: str) -> list[str]:
    """Return the texts, or the passages for None; `InvalidInputError` unless one for each."""
    if texts is None:
        return passages
    checked = list(check_several(texts, f"{what}s", REMEDY))
    if len(checked) != len(passages):
        raise InvalidInputError(
            f"there are {len(checked)} {what}s for {len(passages)} passages; give one for each"
        )
    for index, (text, passage) in enumerate(zip(checked, passages, strict=True)):
        if text != passage:  # else it is checked already
            check_str(text, what, index)
    return checked


def _first_of_equals(
    own: Sequence[str], ids: Iterable[str | None] | None, blank: Collection[int]
) -> list[int]:
    """Positions of the passages whose text and id none that is kept before them has.

    Passages without text, such as images, are compared by id alone.
    """
    kept, seen = [], set[tuple[str, str]]()
    for index, (text, known) in enumerate(zip(own, ids or [None] * len(own), strict=True)):
        keys = {("id", known)} if known is not None else set()
        keys |= {("text", text)} if index not in blank else set()
        if seen.isdisjoint(keys):
            kept.append(index)
            seen |= keys
    return kept


def refuse_blanks(blank: Iterable[int], name: Callable[[int], str]) -> None:
    """Raise `InvalidInputError` for the first of the passages without text, with its name."""
    for index in sorted(blank):
        raise InvalidInputError(
            f"{name(index)} has no text; leave it out, or set no_text to 'last' or 'drop'",
            index=index,
        )


def _about_blanks(query: str, passages: Sequence[str], blank: Collection[int]) -> str | None:
    """A warning about a blank query or blank passages."""
    if is_blank(query):
        return (
            f"The query is blank, and the order of {len(passages)} passages means nothing: ask "
            "with a text"
        )
    return about_blanks(len(blank), len(passages), "passages") if blank else None


def about_blanks(blank: int, given: int, items: str) -> str:
    """A warning about passages without text."""
    return (
        f"{blank} of {given} {items} have no text and are not scored: they come last, without a "
        "score, or not at all under a threshold or cut-off; no_text='drop', of BGERerank and "
        "Reranker, leaves them out"
    )
