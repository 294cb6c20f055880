"""Compare rerankers on judged questions: score every candidate once, then measure."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from inspect import getattr_static
from typing import TypeAlias, TypeGuard, cast

import numpy as np
from ir_measures.measures import Measure

from bge_rerank_integrations.base.contract import check_scorer
from bge_rerank_integrations.base.option_group import count_from, listed, whole_number
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.measures import (
    Orders,
    first_stage,
    measured,
    parse_measures,
    perfect,
    reranked,
    score_all,
)
from bge_rerank_integrations.evaluate.recommend import (
    Recommendation,
    choose_depth,
    choose_threshold,
    choose_top_n,
    compare_gap,
    depths_to_try,
    f1_by_length,
)
from bge_rerank_integrations.evaluate.report import (
    Candidates,
    Change,
    Comparison,
    DepthRow,
    Histogram,
    Latency,
    Report,
    RerankerResult,
    overall_verdict,
    unmeasurable,
    verdict,
)
from bge_rerank_integrations.evaluate.statistics import Array, Resampling
from bge_rerank_integrations.ranking.cutoffs import largest_gap
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import FloatArray, Scorer
from bge_rerank_integrations.wrappers.cache import ScoreStore

MEASURES = ("nDCG@10", "RR@10", "AP", "R@10", "Success@1", "Success@5")
_BINS = 40

Loader: TypeAlias = Callable[[], Scorer | Reranker]
"""Loads a reranker when its turn comes."""


def evaluate(
    queries: Iterable[JudgedQuery],
    rerankers: Mapping[str, Scorer | Reranker | Loader],
    *,
    measures: Sequence[str] = MEASURES,
    depths: Sequence[int] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    examples: int = 10,
    title: str = "Reranking",
    show_progress: bool = False,
    score_cache: ScoreStore | None = None,
) -> Report:
    """Compare named rerankers with each other and with no reranking.

    Every candidate of every question is scored once, each question in a separate call. Only the
    scorer and scale of a `Reranker` matter, not its `top_n`, threshold, timeout or `on_error`. A
    function is called without arguments when its turn comes, and what it loads is closed
    afterwards, so that only one model is in memory. With a `score_cache`, such as
    `wrappers.sqlite_store.SqliteStore`, no pair is scored twice, also by a later or resumed run.

    The first of the `measures`, named as in ir-measures, is the main one: the verdict, depths and
    wins use it. `depths` are the numbers of candidates to try, by default round numbers; all
    candidates are always tried. Intervals are 95% intervals from `resamples` bootstrap resamples of
    the questions. `examples` is the number of wins and losses to keep, with their texts.

    A question without a relevant passage is left out, because no order is better than another. One
    without candidates counts as 0.

    Raises `InvalidInputError` for an option of the wrong type or out of range, and if no question
    with a relevant passage has candidates; and what a scorer raises.
    """
    _check_rerankers(rerankers)
    resampling = Resampling(count_from(100, resamples, "resamples"), count_from(0, seed, "seed"))
    examples = count_from(0, examples, "examples")
    queries = _checked_queries(queries)
    judged = [query for query in queries if any(grade >= 1 for grade in query.grades.values())]
    longest = max((len(query.candidates) for query in judged), default=0)
    tried = _depths(depths, longest)
    data = _Data(judged, parse_measures(measures), tuple(measures), tried, resampling, examples)
    if not longest:
        raise InvalidInputError(
            f"of {len(queries)} questions {len(judged)} have a relevant passage, and none of these "
            "has candidates: there is nothing to measure"
        )
    before = measured(judged, first_stage(judged), data.measures)
    results, mains = [], {}
    for name, given in rerankers.items():
        with ExitStack() as stack:
            loaded = given() if _is_loader(given) else given
            reranker = loaded if isinstance(loaded, Reranker) else Reranker(cast("Scorer", loaded))
            if _is_loader(given) and isinstance(reranker.scorer, AbstractContextManager):
                stack.enter_context(reranker.scorer)
            scored = score_all(
                reranker.scorer,
                judged,
                name=name,
                show_progress=show_progress,
                score_cache=score_cache,
            )
            after = measured(judged, reranked(scored[0], longest), data.measures)
            results.append(data.result(name, reranker, scored, (before, after)))
        mains[name] = after[:, :1]
    comparisons = tuple(
        Comparison(first, second, resampling.differences(mains[first], mains[second])[0])
        for first, second in itertools.combinations(mains, 2)
    )
    estimates = dict(zip(measures, resampling.estimates(before), strict=True))
    main, questions = measures[0], len(judged)
    why_not = unmeasurable(judged)
    verdicts = {
        result.name: why_not or verdict(result, main, before=estimates[main], questions=questions)
        for result in results
    }
    overall, best = overall_verdict(results, comparisons, verdicts, main, questions=questions)
    return Report(
        title=title,
        questions=questions,
        left_out=len(queries) - questions,
        main=main,
        candidates=data.candidates(),
        first_stage=estimates,
        rerankers=tuple(results),
        comparisons=comparisons,
        resamples=resampling.resamples,
        seed=resampling.seed,
        best=best,
        verdict=why_not or overall,
        verdicts=verdicts,
    )


def _depths(given: Sequence[int] | None, longest: int) -> tuple[int, ...]:
    """The numbers of candidates to try, ascending; the longest list is always tried."""
    if given is None:
        return depths_to_try(longest)
    numbers = [whole_number(depth) or 0 for depth in listed(given, "depths")]
    if min(numbers, default=0) < 1:
        raise InvalidInputError(f"depths is {list(given)}; they must be whole numbers from 1")
    return tuple(sorted({min(depth, longest) for depth in numbers} | {longest}))


def _is_loader(given: Scorer | Reranker | Loader) -> TypeGuard[Loader]:
    return callable(given) and getattr_static(given, "score", None) is None


def _check_rerankers(rerankers: Mapping[str, Scorer | Reranker | Loader]) -> None:
    if not isinstance(rerankers, Mapping):
        raise InvalidInputError(
            f"rerankers is a {type(rerankers).__name__}; it must map names to scorers, as in "
            '{"base": scorer}'
        )
    if not rerankers:
        raise InvalidInputError("rerankers is empty; give at least one")
    for name, given in rerankers.items():
        if not isinstance(given, Reranker) and not _is_loader(given):
            check_scorer(given, f"the reranker {name!r}")


def _checked_queries(queries: Iterable[JudgedQuery]) -> list[JudgedQuery]:
    if not isinstance(queries, Iterable):
        raise InvalidInputError(
            f"queries is a {type(queries).__name__}; it must be a list of JudgedQuery"
        )
    every = list(queries)
    for place, query in enumerate(every):
        if not isinstance(query, JudgedQuery):
            raise InvalidInputError(
                f"the query at position {place} is a {type(query).__name__}, not a JudgedQuery: "
                "use retrieve_candidates or read_beir"
            )
    return every


@dataclass(frozen=True, slots=True)
class _Data:
    """Data for all rerankers: the judged questions, the measures, the depths to try."""

    queries: Sequence[JudgedQuery]
    measures: Sequence[Measure]
    names: tuple[str, ...]
    depths: tuple[int, ...]
    resampling: Resampling
    examples: int

    @property
    def counts(self) -> Array:
        """The number of candidates of each question."""
        return np.array([len(query.candidates) for query in self.queries], dtype=np.float64)

    def recall(self, depth: int) -> float:
        """The mean share of a question's relevant passages among its first candidates."""
        return float(
            np.mean(
                [
                    query.relevance[:depth].sum() / sum(g >= 1 for g in query.grades.values())
                    for query in self.queries
                ]
            )
        )

    def candidates(self) -> Candidates:
        best = measured(self.queries, perfect(self.queries), self.measures).mean(axis=0)
        return Candidates(
            most=int(self.counts.max()),
            mean=float(self.counts.mean()),
            recall=self.recall(int(self.counts.max())),
            answerable=float(np.mean([query.relevance.any() for query in self.queries])),
            none_found=int((self.counts == 0).sum()),
            best=dict(zip(self.names, best.tolist(), strict=True)),
        )

    def result(
        self,
        name: str,
        reranker: Reranker,
        scored: tuple[Sequence[FloatArray], Array],
        values: tuple[Array, Array],
    ) -> RerankerResult:
        """One reranker's results; `values` are each question's measures before and after."""
        (scores, seconds), (before, after) = scored, values
        main = np.column_stack(
            [
                measured(self.queries, reranked(scores, depth), self.measures[:1])
                for depth in self.depths
            ]
        )
        gains = dict(zip(self.names, self.resampling.differences(before, after), strict=True))
        helps = gains[self.names[0]].is_gain
        changes = self._changes(reranked(scores, self.depths[-1]), before[:, 0], after[:, 0])
        return RerankerResult(
            name=name,
            scorer=reranker.scorer.name,
            scale=reranker.scorer.scale,
            measures=dict(zip(self.names, self.resampling.estimates(after), strict=True)),
            gains=gains,
            depths=self._depth_rows(before[:, :1], main),
            latency=self._latency(seconds),
            recommendation=self._recommendation(reranker, scores, main - before[:, :1])
            if helps
            else None,
            wins=tuple([c for c in changes if c.after > c.before][: self.examples]),
            losses=tuple([c for c in reversed(changes) if c.after < c.before][: self.examples]),
            differences=tuple(np.sort(after[:, 0] - before[:, 0]).tolist()),
            histogram=self._histogram(scores),
        )

    def _recommendation(
        self, reranker: Reranker, scores: Sequence[FloatArray], gains: Array
    ) -> Recommendation:
        depth = choose_depth(self.depths, gains)
        used = self.depths[-1] if depth is None else int(depth.value)
        ranks, relevant, others = [], [], []
        orders = reranked(scores, used)
        for query, order, raw in zip(self.queries, orders, scores, strict=True):
            found = np.flatnonzero(query.relevance[order][:used])
            ranks += found[:1].tolist()
            shown = np.array(reranker.shown_scores(raw[:used]))
            relevant.append(shown[query.relevance[:used]])
            others.append(shown[~query.relevance[:used]])
        top_n = choose_top_n(np.array(ranks) + 1.0)
        gap = None
        if top_n is not None and top_n.value > 1:
            most, lengths, f1 = int(top_n.value), [], []
            for query, order, raw in zip(self.queries, orders, scores, strict=True):
                lengths.append(max(1, largest_gap(raw[order][:used].tolist(), 1, most)))
                every = sum(grade >= 1 for grade in query.grades.values())
                f1.append(f1_by_length(query.relevance[order][:used], every, most))
            gap = compare_gap(np.array(lengths), np.array(f1), self.resampling)
        return Recommendation(depth, top_n, *choose_threshold(relevant, others), gap)

    def _latency(self, seconds: Array) -> Latency | None:
        timed = ~np.isnan(seconds)
        if not timed.any():
            return None
        return Latency(
            median=float(np.median(seconds[timed])),
            p95=float(np.quantile(seconds[timed], 0.95)),
            ms_per_candidate=float(1000 * seconds[timed].sum() / self.counts[timed].sum()),
        )

    def _depth_rows(self, before: Array, main: Array) -> tuple[DepthRow, ...]:
        qualities = self.resampling.estimates(main)
        gains = self.resampling.differences(np.broadcast_to(before, main.shape), main)
        rows = zip(self.depths, qualities, gains, map(self.recall, self.depths), strict=True)
        return tuple(DepthRow(*row) for row in rows)

    def _changes(self, orders: Orders, before: Array, after: Array) -> list[Change]:
        """The questions whose main measure changed, greatest gain first."""
        changes = []
        for place in np.argsort(before - after, kind="stable").tolist():
            if abs(after[place] - before[place]) < 1e-12:
                continue
            query, order = self.queries[place], orders[place]
            texts = list(query.candidates.values())
            ranks = [
                int(np.argmax(relevant)) + 1 if relevant.any() else None
                for relevant in (query.relevance, query.relevance[order])
            ]
            changes.append(
                Change(
                    id=query.id,
                    question=query.text,
                    before=float(before[place]),
                    after=float(after[place]),
                    rank_before=ranks[0],
                    rank_after=ranks[1],
                    top_before=texts[0],
                    top_after=texts[order[0]],
                )
            )
        return changes

    def _histogram(self, scores: Sequence[FloatArray]) -> Histogram:
        raw = np.concatenate(scores).astype(np.float64)
        relevant = np.concatenate([query.relevance for query in self.queries])
        edges = np.histogram_bin_edges(raw, bins=_BINS)
        return Histogram(
            tuple(edges.tolist()),
            tuple(np.histogram(raw[relevant], edges)[0].tolist()),
            tuple(np.histogram(raw[~relevant], edges)[0].tolist()),
        )
