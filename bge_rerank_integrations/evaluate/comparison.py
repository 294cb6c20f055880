"""Rerankers side by side on judged questions: scored once, then counted."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.bootstrap import (
    Array,
    Bootstrap,
    Difference,
    difference,
    estimate,
)
from bge_rerank_integrations.evaluate.figures import (
    Judged,
    candidates,
    changes,
    depth_rows,
    histogram,
    latency,
    quality_by_depth,
)
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.measures import (
    Scored,
    first_stage,
    measured,
    parse_measures,
    reranked,
    score_all,
)
from bge_rerank_integrations.evaluate.recommend import (
    depths_to_try,
    recommend_depth,
    recommend_threshold,
    recommend_top_n,
)
from bge_rerank_integrations.evaluate.report import Comparison, Report, RerankerResult
from bge_rerank_integrations.evaluate.verdict import overall_verdict, verdict, why_unmeasurable
from bge_rerank_integrations.option_checks import check_scorer, listed, whole_number
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import Scorer

MEASURES = ("nDCG@10", "RR@10", "AP", "R@10", "Success@1", "Success@5")


def evaluate(
    queries: Iterable[JudgedQuery],
    rerankers: Mapping[str, Scorer | Reranker],
    *,
    measures: Sequence[str] = MEASURES,
    depths: Sequence[int] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    examples: int = 10,
    title: str = "Reranking",
    show_progress: bool = False,
) -> Report:
    """Compare rerankers, by the names given them, with each other and with no reranking.

    Every candidate of every question is scored once, each question's in a call of their own. Of a
    `Reranker` only the scorer and the scale count: neither its `top_n` nor its threshold, timeout
    or `on_error`. The first of the `measures`, which are named as in ir-measures, is the main one:
    the verdict, the depths and the wins go by it. `depths` are the numbers of candidates to try,
    by default round numbers; all of them is always tried. Intervals are of 95%, from `resamples`
    resamples of the questions. `examples` is how many wins and losses to keep, with their texts.

    A question without a relevant passage is left out: no order of it is better than another. One
    without candidates counts, as 0.

    Raises `InvalidInputError` for options of another kind or out of range, and where no question
    has a relevant passage or none has candidates, `MissingExtra` without the `eval` extra, and
    what a scorer raises.
    """
    _check_rerankers(rerankers)
    depths = None if depths is None else _checked_depths(depths)
    resamples = _checked_number("resamples", resamples, least=100)
    seed = _checked_number("seed", seed, least=0)
    examples = _checked_number("examples", examples, least=0)
    queries = _checked_queries(queries)
    parsed = parse_measures(measures)
    judged = [query for query in queries if any(grade >= 1 for grade in query.grades.values())]
    longest = max((len(query.candidates) for query in judged), default=0)
    if not longest:
        raise InvalidInputError(
            f"of {len(queries)} questions {len(judged)} have a relevant passage, and none of these "
            "has candidates: there is nothing to measure"
        )
    tried = {min(depth, longest) for depth in depths or depths_to_try(longest)} | {longest}
    bootstrap = Bootstrap(len(judged), resamples, seed)
    data = Judged(judged, parsed, tuple(measures), tuple(sorted(tried)), bootstrap)
    before = measured(judged, first_stage(judged), parsed)
    results, mains = [], {}
    for name, given in rerankers.items():
        reranker = given if isinstance(given, Reranker) else Reranker(given)
        scored = score_all(reranker.scorer, judged, name=name, show_progress=show_progress)
        after = measured(judged, reranked(scored.scores, longest), parsed)
        results.append(
            _result(data, name, reranker, scored, before=before, after=after, examples=examples)
        )
        mains[name] = after[:, 0]
    comparisons = tuple(
        Comparison(first, second, _difference(mains[first], mains[second], bootstrap))
        for first, second in itertools.combinations(mains, 2)
    )
    means = bootstrap.means(before)
    estimates = {
        name: estimate(before[:, column], means[:, column]) for column, name in enumerate(measures)
    }
    main = measures[0]
    unmeasurable = why_unmeasurable(judged)
    verdicts = {
        result.name: unmeasurable
        or verdict(result, main, before=estimates[main], questions=len(judged))
        for result in results
    }
    return Report(
        title=title,
        questions=len(judged),
        left_out=len(queries) - len(judged),
        main=main,
        candidates=candidates(data),
        first_stage=estimates,
        rerankers=tuple(results),
        comparisons=comparisons,
        resamples=resamples,
        seed=seed,
        verdict=unmeasurable
        or overall_verdict(results, comparisons, verdicts, main, questions=len(judged)),
        verdicts=verdicts,
    )


def _check_rerankers(rerankers: Mapping[str, Scorer | Reranker]) -> None:
    if not isinstance(rerankers, Mapping):
        raise InvalidInputError(
            f"rerankers is a {type(rerankers).__name__}; it must name each scorer or Reranker, as "
            '{"base": scorer}'
        )
    if not rerankers:
        raise InvalidInputError("rerankers is empty; name at least one")
    for name, given in rerankers.items():
        if not isinstance(given, Reranker):
            check_scorer(given, f"the reranker {name!r}")


def _checked_depths(depths: Sequence[int]) -> list[int]:
    given = listed(depths, "depths")
    numbers = [number for depth in given if (number := whole_number(depth)) is not None]
    if not given or len(numbers) < len(given) or min(numbers) < 1:
        raise InvalidInputError(f"depths is {list(given)}; they must be whole numbers from 1")
    return numbers


def _checked_number(name: str, given: int, *, least: int) -> int:
    number = whole_number(given)
    if number is None or number < least:
        raise InvalidInputError(f"{name} is {given!r}; it must be at least {least}, a whole number")
    return number


def _checked_queries(queries: Iterable[JudgedQuery]) -> list[JudgedQuery]:
    if not isinstance(queries, Iterable):
        raise InvalidInputError(
            f"queries is a {type(queries).__name__}; it must be a list of JudgedQuery"
        )
    listed_queries = list(queries)
    for place, query in enumerate(listed_queries):
        if not isinstance(query, JudgedQuery):
            raise InvalidInputError(
                f"the query at position {place} is a {type(query).__name__}, not a JudgedQuery: "
                "retrieve_candidates and read_beir give these"
            )
    return listed_queries


def _difference(first: Array, second: Array, bootstrap: Bootstrap) -> Difference:
    means = bootstrap.means(np.column_stack([first, second]))
    return difference(first, second, means[:, 0], means[:, 1])


def _result(
    data: Judged,
    name: str,
    reranker: Reranker,
    scored: Scored,
    *,
    before: Array,
    after: Array,
    examples: int,
) -> RerankerResult:
    queries, bootstrap, deepest = data.queries, data.bootstrap, data.depths[-1]
    before_means, after_means = bootstrap.means(before), bootstrap.means(after)
    by_depth = quality_by_depth(data, before[:, 0], scored.scores)
    depth = recommend_depth(data.depths, by_depth, bootstrap)
    used = deepest if depth is None else depth.value
    changed = changes(queries, reranked(scored.scores, deepest), before[:, 0], after[:, 0])
    return RerankerResult(
        name=name,
        scorer=reranker.scorer.name,
        scale=reranker.scorer.scale,
        measures={
            measure: estimate(after[:, column], after_means[:, column])
            for column, measure in enumerate(data.names)
        },
        gains={
            measure: difference(
                before[:, column], after[:, column], before_means[:, column], after_means[:, column]
            )
            for column, measure in enumerate(data.names)
        },
        depths=depth_rows(data, by_depth, scored),
        latency=latency(queries, scored),
        depth=depth,
        top_n=recommend_top_n(queries, reranked(scored.scores, used), used, bootstrap),
        threshold=recommend_threshold(queries, scored.scores, used, reranker, bootstrap),
        wins=tuple(change for change in changed if change.after > change.before)[:examples],
        losses=tuple(change for change in reversed(changed) if change.after < change.before)[
            :examples
        ],
        differences=tuple(np.sort(after[:, 0] - before[:, 0]).tolist()),
        histogram=histogram(queries, scored.scores),
    )
