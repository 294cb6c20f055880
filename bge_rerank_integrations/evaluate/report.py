"""The results of an evaluation as data, and its verdict in plain sentences.

Every figure in a table or page is a field here. The verdict claims no more than its intervals.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.recommend import Depth, Threshold, TopN
from bge_rerank_integrations.evaluate.statistics import Difference, Estimate
from bge_rerank_integrations.types import Scale


@dataclass(frozen=True, slots=True)
class Candidates:
    """The retriever's candidates, which limit what a reranker can do.

    `recall` is the mean share of a question's relevant passages among its candidates,
    `answerable` the share of questions with at least one, `none_found` the number of questions
    without candidates, and `best` each measure of the best possible order.
    """

    most: int
    mean: float
    recall: float
    answerable: float
    none_found: int
    best: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DepthRow:
    """The result of reranking only the first `depth` candidates.

    `quality` and `gain` (over the first stage) are of the main measure. `recall` is that of the
    first `depth` candidates. `seconds` is an estimate: the median time of a question, in
    proportion to the number of candidates.
    """

    depth: int
    quality: Estimate
    gain: Difference
    recall: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured seconds for all candidates of a question, and milliseconds for one candidate."""

    median: float
    p95: float
    ms_per_candidate: float


@dataclass(frozen=True, slots=True)
class Change:
    """A question whose main measure changed.

    `rank_before` and `rank_after` are the ranks of its first relevant candidate, None if there is
    none; `top_before` and `top_after` are the texts of the first candidate.
    """

    id: str
    question: str
    before: float
    after: float
    rank_before: int | None
    rank_after: int | None
    top_before: str
    top_after: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many relevant and other candidates have a raw score between neighbouring edges."""

    edges: tuple[float, ...]
    relevant: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RerankerResult:
    """One reranker over all candidates of every question.

    `differences` are each question's main measure after minus before, ascending; `wins` and
    `losses` are the questions that changed most, largest change first.
    """

    name: str
    scorer: str
    scale: Scale
    measures: Mapping[str, Estimate]
    gains: Mapping[str, Difference]
    depths: tuple[DepthRow, ...]
    latency: Latency
    depth: Depth | None
    top_n: TopN | None
    threshold: Threshold | None
    wins: tuple[Change, ...]
    losses: tuple[Change, ...]
    differences: tuple[float, ...]
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Comparison:
    """The main measure of reranker `second` minus that of reranker `first`."""

    first: str
    second: str
    difference: Difference


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation; `main` is the first of the measures, which decides the verdict.

    `questions` counts those with a relevant passage, `left_out` those without. `resamples` and
    `seed` are those of the intervals. `verdict` says which reranker to use, if any, and how to set
    it; `verdicts` has one for each reranker by name.
    """

    title: str
    questions: int
    left_out: int
    main: str
    candidates: Candidates
    first_stage: Mapping[str, Estimate]
    rerankers: tuple[RerankerResult, ...]
    comparisons: tuple[Comparison, ...]
    resamples: int
    seed: int
    verdict: str
    verdicts: Mapping[str, str]


_ENOUGH = 20
"""With fewer questions even the widened interval may be too narrow, and the verdict says so."""


def verdict(result: RerankerResult, main: str, *, before: Estimate, questions: int) -> str:
    """Say what one reranker does for these questions, and which settings to use."""
    name, gain, latency = result.name, result.gains[main], result.latency
    figures = f"{main} goes from {before.value:.3f} to {result.measures[main].value:.3f}, by {gain}"
    if not gain.wins + gain.losses:
        who = f"none of the {questions} questions"
        return f"No measurable difference: {name} changes {main} for {who}."
    if gain.low is None:
        return (
            f"Too few of the {questions} questions change to tell whether {name} helps: {figures}. "
            "Judge more questions, better 50."
        )
    narrow = (
        f" With only {questions} questions the interval may be too narrow."
        if questions < _ENOUGH
        else ""
    )
    if not gain.is_clear:
        return (
            f"No measurable difference: with {name}, {figures}. On these questions nothing shows "
            f"that it is worth its {_seconds(latency.median)} each." + _shallow(result) + narrow
        )
    if not gain.is_gain:
        return f"{name} makes the order worse: {figures}." + _shallow(result) + narrow
    helps = f"{name} helps: {figures}, for {_seconds(latency.median)} a question.{narrow}"
    return " ".join([helps, *recommendations(result, main)])


def unmeasurable(queries: Sequence[JudgedQuery]) -> str:
    """Say why no order of the candidates is better than another; "" if one may be.

    Each query has a relevant passage, and at least one has candidates.
    """
    if any(query.relevance.any() for query in queries):
        return ""
    why = (
        "No candidate of any question is relevant, so no order is better than another, and this "
        "says nothing about reranking."
    )
    if any(key in query.grades for query in queries for key in query.candidates):
        return why
    judged = next(key for key, grade in queries[0].grades.items() if grade >= 1)
    candidate = next(key for query in queries for key in query.candidates)
    return (
        f"{why} No judged id is among the candidates: are they the same ids? A judged id is "
        f"{judged!r}, a candidate's id is {candidate!r}."
    )


def recommendations(result: RerankerResult, main: str) -> list[str]:
    """A sentence for each recommended setting; none unless reranking measurably helps."""
    if not result.gains[main].is_gain:
        return []
    depth, top_n, threshold = result.depth, result.top_n, result.threshold
    said = []
    if depth is not None:
        said.append(
            f"Rerank the first {depth.value} candidates{_range(depth.low, depth.high)}: that has "
            "95% of the gain."
        )
    if top_n is not None:
        said.append(
            f"top_n={top_n.value}{_range(top_n.low, top_n.high)} keeps a relevant passage for "
            f"95% of the {top_n.questions} questions that have one."
        )
    if threshold is not None:
        shown = threshold.shown
        said.append(
            f"score_threshold={round_down(shown.value, above=threshold.below)} "
            f"[{round_down(shown.low)}, {round_down(shown.high)}] keeps {threshold.kept:.0%} of "
            f"the relevant candidates and drops {threshold.dropped:.0%} of the others."
        )
    return said


def overall_verdict(
    results: Sequence[RerankerResult],
    comparisons: Sequence[Comparison],
    verdicts: Mapping[str, str],
    main: str,
    *,
    questions: int,
) -> str:
    """Say which reranker to use; for a single one, its own verdict."""
    if len(results) == 1:
        return verdicts[results[0].name]
    helping = [result for result in results if result.gains[main].is_gain]
    if not helping:
        return (
            f"None of the {len(results)} rerankers measurably improves {main} over these "
            f"{questions} questions."
        )
    best = max(helping, key=lambda result: result.measures[main].value)
    rivals = {
        name: comparison.difference
        for comparison in comparisons
        for name in {comparison.first, comparison.second} - {best.name}
        if best.name in (comparison.first, comparison.second)
    }
    said = [verdicts[best.name]]
    if beaten := [name for name, difference in rivals.items() if difference.is_clear]:
        said.append(f"It is measurably better than {', '.join(beaten)}.")
    if level := [name for name, difference in rivals.items() if not difference.is_clear]:
        said.append(f"No measurable difference between it and {', '.join(level)}.")
        quick = [r for r in helping if r.name in level and r.latency.median < best.latency.median]
        said += [f"{r.name} took {_seconds(r.latency.median)} a question." for r in quick]
    if len(results) > 2:
        said.append("With so many comparisons a p-value near 0.05 may be chance.")
    return " ".join(said)


def _shallow(result: RerankerResult) -> str:
    """Say which smaller depth would help where the whole does not."""
    better = [row for row in result.depths if row.gain.is_gain]
    if not better:
        return ""
    row = max(better, key=lambda row: row.gain.value)
    return (
        f" With only the first {row.depth} candidates it gains {row.gain}; of "
        f"{len(result.depths)} depths one may do so by chance, so check it on other questions."
    )


def round_down(number: float, *, above: float | None = None) -> str:
    """Round down to four significant digits, so that a threshold still keeps what it should.

    A number between 0 and 1 has four digits of its distance to the nearer end, where sigmoids
    crowd. More digits are added until the result exceeds `above`, which it must drop.
    """
    if number == 0:
        return "0"
    distance = min(number, 1 - number) if 0 < number < 1 else abs(number)
    for digits in itertools.count(3 - math.floor(math.log10(distance))):
        rounded = Decimal(str(number)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR)
        if above is None or float(rounded) > above:
            break
    return f"{rounded:f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _range(low: int, high: int) -> str:
    return f" [{low} to {high}]" if low < high else ""
