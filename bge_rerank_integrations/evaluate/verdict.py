"""The report in plain sentences, which claim no more than its intervals do."""

import itertools
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal

from bge_rerank_integrations.evaluate.bootstrap import Difference, Estimate
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.recommend import Depth, Threshold, TopN, relevance
from bge_rerank_integrations.evaluate.report import Comparison, RerankerResult

FEWEST = 10
"""Below so many questions a percentile interval is far too narrow to go by."""

FEW = 50
"""Below so many it is still somewhat too narrow, which is said."""


def verdict(result: RerankerResult, main: str, *, before: Estimate, questions: int) -> str:
    """What one reranker does for these questions, and what to set."""
    name, gain, latency = result.name, result.gains[main], result.latency
    figures = (
        f"{main} goes from {before.value:.3f} to {result.measures[main].value:.3f}, by "
        f"{_gain(gain)}, p {_p(gain.p_value)}"
    )
    if questions < FEWEST:
        return (
            f"{questions} questions are too few to tell whether {name} helps: {figures}. Judge at "
            f"least {FEWEST}, better {FEW}."
        )
    narrow = (
        f" With only {questions} questions intervals are somewhat too narrow."
        if questions < FEW
        else ""
    )
    if not gain.is_clear:
        return (
            f"No measurable difference: with {name}, {figures}; the interval holds 0. On these "
            f"questions nothing shows that it is worth its {_seconds(latency.median)} each."
            + _shallow(result)
            + narrow
        )
    if gain.value < 0:
        return f"{name} makes the order worse: {figures}." + _shallow(result) + narrow
    parts = [f"{name} helps: {figures}, for {_seconds(latency.median)} a question.{narrow}"]
    parts += recommendations(result.depth, result.top_n, result.threshold)
    return " ".join(parts)


def why_unmeasurable(queries: Sequence[JudgedQuery]) -> str:
    """Why no order of any candidates is better than another; "" where one may be.

    Each of the queries has a relevant passage, and at least one has candidates.
    """
    if any(relevance(query).any() for query in queries):
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
        f"{why} No judged id is among the candidates: are they the same ids? One that is judged is "
        f"{judged!r}, one of a candidate {candidate!r}."
    )


def helps(result: RerankerResult, main: str, *, questions: int) -> bool:
    """Whether it measurably improves the main measure."""
    return questions >= FEWEST and result.gains[main].low > 0


def _shallow(result: RerankerResult) -> str:
    """What fewer candidates would do, where all of them do not help."""
    better = [row for row in result.depths if row.gain.low > 0]
    if not better:
        return ""
    row = max(better, key=lambda row: row.gain.value)
    return (
        f" With only the first {row.depth} candidates it gains {_gain(row.gain)}; of "
        f"{len(result.depths)} depths one may do so by chance, so try that on other questions."
    )


def recommendations(
    depth: Depth | None, top_n: TopN | None, threshold: Threshold | None
) -> list[str]:
    """A sentence for each of the settings that the data says something about."""
    parts = []
    if depth is not None:
        parts.append(
            f"Rerank the first {depth.value} candidates{_range(depth.low, depth.high)}: that has "
            "95% of the gain."
        )
    if top_n is not None:
        parts.append(
            f"top_n={top_n.value}{_range(top_n.low, top_n.high)} leaves a relevant passage in the "
            f"results of 95% of the {top_n.questions} questions that have one."
        )
    if threshold is not None:
        shown = threshold.shown
        parts.append(
            f"score_threshold={down(shown.value, above=threshold.below)} [{down(shown.low)}, "
            f"{down(shown.high)}] keeps {threshold.kept:.0%} of the relevant candidates and drops "
            f"{threshold.dropped:.0%} of the others."
        )
    return parts


def overall_verdict(
    results: Sequence[RerankerResult],
    comparisons: Sequence[Comparison],
    verdicts: Mapping[str, str],
    main: str,
    *,
    questions: int,
) -> str:
    """Which reranker to take; of a single one, its own verdict."""
    if len(results) == 1:
        return verdicts[results[0].name]
    helping = [result for result in results if helps(result, main, questions=questions)]
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
    parts = [verdicts[best.name]]
    if beaten := [name for name, difference in rivals.items() if difference.is_clear]:
        parts.append(f"It is measurably better than {', '.join(beaten)}.")
    if level := [name for name, difference in rivals.items() if not difference.is_clear]:
        parts.append(f"No measurable difference between it and {', '.join(level)}.")
        quick = [r for r in helping if r.name in level and r.latency.median < best.latency.median]
        parts += [f"{r.name} took {_seconds(r.latency.median)} a question." for r in quick]
    if len(results) > 2:
        parts.append("With so many comparisons a p-value near 0.05 may be chance.")
    return " ".join(parts)


def down(number: float, *, above: float | None = None) -> str:
    """Four significant digits, never more than the number: a threshold must keep what it says.

    Of a number between 0 and 1 they are those of its distance to the nearer end, for sigmoids crowd
    there. There are as many more as keep it above the number `above`, which it must drop.
    """
    if number == 0:
        return "0"
    distance = min(number, 1 - number) if 0 < number < 1 else abs(number)
    for digits in itertools.count(3 - math.floor(math.log10(distance))):
        rounded = Decimal(str(number)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR)
        if above is None or float(rounded) > above:
            break
    return f"{rounded:f}"


def _gain(gain: Difference) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _range(low: int, high: int) -> str:
    return f" [{low} to {high}]" if low < high else ""
