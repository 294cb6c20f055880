"""The results of an evaluation as data, and its verdict in plain sentences.

Every figure in a table or page is a field here. The verdict claims no more than its intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.recommend import Recommendation
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
    first `depth` candidates.
    """

    depth: int
    quality: Estimate
    gain: Difference
    recall: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for all candidates of a question, and milliseconds for one candidate.

    Measured on the questions without a score from the cache.
    """

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

    `latency` is None if every question had a score from the cache. `recommendation` is None
    without a measurable gain. `differences` are each question's main measure after minus before,
    ascending; `wins` and `losses` are the questions that changed most, largest change first.
    """

    name: str
    scorer: str
    scale: Scale
    measures: Mapping[str, Estimate]
    gains: Mapping[str, Difference]
    depths: tuple[DepthRow, ...]
    latency: Latency | None
    recommendation: Recommendation | None
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
    it; `verdicts` has one for each reranker by name. `best` is the name of the best reranker that
    measurably helps, None if none does.
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
    best: str | None
    verdict: str
    verdicts: Mapping[str, str]


_ENOUGH = 20
"""With fewer questions even the widened interval may be too narrow, and the verdict says so."""


def verdict(result: RerankerResult, main: str, *, before: Estimate, questions: int) -> str:
    """Say what one reranker does for these questions, and which settings to use."""
    name, gain = result.name, result.gains[main]
    figures = f"{main} goes from {before.value:.3f} to {result.measures[main].value:.3f}, by {gain}"
    if not gain.wins + gain.losses:
        who = f"none of the {questions} questions"
        return f"No measurable difference: {name} changes {main} for {who}."
    if gain.low is None:
        return (
            f"Too few of the {questions} questions change to tell whether {name} helps: {figures}. "
            "Judge more questions, ideally 50."
        )
    narrow = (
        f" With only {questions} questions the interval may be too narrow."
        if questions < _ENOUGH
        else ""
    )
    if gain.is_gain:
        cost = f", for {_seconds(result.latency)} a question" if result.latency else ""
        return " ".join([f"{name} helps: {figures}{cost}.{narrow}", *recommended(result)])
    if gain.is_clear:
        return f"{name} makes the order worse: {figures}.{narrow}"
    cost = f"its {_seconds(result.latency)} each" if result.latency else "the time"
    return (
        f"No measurable difference: with {name}, {figures}. These questions do not show that it "
        f"is worth {cost}.{narrow}"
    )


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


def recommended(result: RerankerResult) -> list[str]:
    """A sentence for each recommended setting."""
    found = result.recommendation
    sentences = []
    if found and found.depth:
        sentences.append(
            f"Rerank the first {found.depth.value} candidates: that has {found.depth.kept:.0%} of "
            f"the gain, {found.depth.held_out:.0%} on held-out questions."
        )
    if found and found.top_n:
        sentences.append(
            f"top_n={found.top_n.value} keeps a relevant passage for {found.top_n.kept:.0%} of the "
            f"questions that have one, {found.top_n.held_out:.0%} held out."
        )
    if found and (threshold := found.score_threshold):
        others = "" if found.dropped is None else f", and drops {found.dropped:.0%} of the others"
        sentences.append(
            f"score_threshold={threshold.value} keeps {threshold.kept:.0%} of the relevant "
            f"candidates, {threshold.held_out:.0%} held out{others}."
        )
    if found and (gap := found.gap):
        advice = "min_n=1 helps" if gap.gain.is_gain else "Leave min_n out"
        sentences.append(
            f"{advice}: the largest score gap ends the results after {gap.length:.1f} on average, "
            f"with an F1 of {gap.f1:.3f}; the same number for every question gives "
            f"{gap.fixed_f1:.3f} ({gap.gain})."
        )
    return sentences


def overall_verdict(
    results: Sequence[RerankerResult],
    comparisons: Sequence[Comparison],
    verdicts: Mapping[str, str],
    main: str,
    *,
    questions: int,
) -> tuple[str, str | None]:
    """Say which reranker to use, and give its name; for a single one, its own verdict."""
    helping = [result for result in results if result.gains[main].is_gain]
    best = max(helping, key=lambda result: result.measures[main].value, default=None)
    if len(results) == 1:
        return verdicts[results[0].name], None if best is None else best.name
    if best is None:
        return (
            f"None of the {len(results)} rerankers measurably improves {main} over these "
            f"{questions} questions."
        ), None
    rivals = {
        name: comparison.difference
        for comparison in comparisons
        for name in {comparison.first, comparison.second} - {best.name}
        if best.name in (comparison.first, comparison.second)
    }
    sentences = [verdicts[best.name]]
    if beaten := [name for name, difference in rivals.items() if difference.is_clear]:
        sentences.append(f"It is measurably better than {', '.join(beaten)}.")
    if level := [name for name, difference in rivals.items() if not difference.is_clear]:
        sentences.append(f"No measurable difference between it and {', '.join(level)}.")
        sentences += [
            f"{r.name} took {_seconds(r.latency)} a question."
            for r in helping
            if r.name in level and r.latency and best.latency
            if r.latency.median < best.latency.median
        ]
    if len(results) > 2:
        sentences.append("With so many comparisons a p-value near 0.05 may be chance.")
    return " ".join(sentences), best.name


def code_to_paste(options: Mapping[str, object], depth: int | None = None) -> str:
    """Python lines that use these options of `BGERerank` in LlamaIndex and in LangChain.

    `depth` is the number of candidates that the retriever should find.
    """
    written = ", ".join(f"{name}={value!r}" for name, value in options.items())
    search = "" if depth is None else f"similarity_top_k={depth}, "
    fetch = "" if depth is None else f"candidates={depth}, "
    return (
        "from bge_rerank_integrations.llama_index import BGERerank\n"
        f"engine = index.as_query_engine({search}node_postprocessors=[BGERerank({written})])\n\n"
        "from bge_rerank_integrations.langchain import BGERerankRetriever\n"
        f"retriever = BGERerankRetriever(base_retriever=retriever, {fetch}{written})\n"
    )


def _seconds(latency: Latency) -> str:
    value = latency.median
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
