"""Recommended settings: candidates to rerank, results to keep, and a score threshold.

Each rule is stated once, here. Its interval is the middle 95% of what it gives for resampled
questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.measures import Orders
from bge_rerank_integrations.evaluate.statistics import (
    Array,
    Draw,
    Estimate,
    Resampling,
    covering,
)
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import FloatArray

SHARE = 0.95
"""The share that a recommendation keeps: of the gain, the questions, the relevant passages."""

STEPS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True)
class Depth:
    """How many candidates to rerank: the smallest depth with 95% of the best depth's gain."""

    value: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TopN:
    """How many results to keep so that 95% of the answerable questions keep a relevant passage.

    `questions` counts those whose candidates hold a relevant passage.
    """

    value: int
    low: int
    high: int
    questions: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """The raw score that 95% of the relevant candidates reach.

    `shown` is the same on the scale of `score_threshold`. `kept` is the share of relevant
    candidates at or above it, `dropped` the share of other candidates below it, unjudged relevant
    ones included; other questions will give other shares. `below` is the highest shown score of a
    dropped candidate, None if all are kept: any threshold above it, up to `shown`, has the same
    effect.
    """

    raw: Estimate
    shown: Estimate
    below: float | None
    kept: float
    dropped: float
    relevant: int


def depths_to_try(longest: int) -> tuple[int, ...]:
    """Round numbers below the length of the longest candidate list, and that length."""
    return (*(step for step in STEPS if step < longest), longest)


def recommend_depth(depths: Sequence[int], values: Array, resampling: Resampling) -> Depth | None:
    """See `Depth`; None if no depth gains anything.

    `values` is the quality of each question, [questions, 1 + depths], first without reranking.
    """

    def rule(draw: Draw) -> float:
        means = values[draw].mean(axis=0)
        gains = means[1:] - means[0]
        best = gains.max()
        return float(np.argmax(gains >= SHARE * best - 1e-12)) if best > 1e-12 else np.nan

    now = rule(np.arange(len(values)))
    if np.isnan(now):
        return None
    low, high = resampling.spread(len(values), rule)
    return Depth(depths[int(now)], depths[int(low)], depths[int(high)])


def recommend_top_n(
    queries: Sequence[JudgedQuery], orders: Orders, depth: int, resampling: Resampling
) -> TopN | None:
    """See `TopN`; None if no question has a relevant passage among its first `depth` results."""
    ranks, owners = [], []
    for number, (query, order) in enumerate(zip(queries, orders, strict=True)):
        found = np.flatnonzero(query.relevance[order][:depth])
        if found.size:
            ranks.append(float(found[0] + 1))
            owners.append(number)
    if not ranks:
        return None
    rule = covering(np.array(ranks), np.array(owners), SHARE)
    low, high = resampling.spread(len(queries), rule)
    return TopN(int(rule(np.arange(len(queries)))), int(low), int(high), len(ranks))


def recommend_threshold(
    queries: Sequence[JudgedQuery],
    scores: Sequence[FloatArray],
    depth: int,
    reranker: Reranker,
    resampling: Resampling,
) -> Threshold | None:
    """See `Threshold`, for the first `depth` candidates; None if none of them is relevant."""
    raw = np.concatenate([some[:depth] for some in scores]).astype(np.float64)
    relevant = np.concatenate([query.relevance[:depth] for query in queries])
    counts = [min(depth, len(some)) for some in scores]
    owners = np.repeat(np.arange(len(queries)), counts)
    if not relevant.any():
        return None
    # the largest score that enough reach is minus the smallest that enough negatives do not exceed
    rule = covering(-raw[relevant], owners[relevant], SHARE)
    low, high = resampling.spread(len(queries), rule)
    limit = Estimate(-rule(np.arange(len(queries))), -high, -low)
    shown = Estimate(*(reranker.shown(end) for end in (limit.value, limit.low, limit.high)))
    # compare on the shown scale: two neighbouring raw scores may have the same probability
    every = np.array([reranker.shown(score) for score in raw.tolist()])
    passed = every >= shown.value
    return Threshold(
        raw=limit,
        shown=shown,
        below=None if passed.all() else float(every[~passed].max()),
        kept=float(passed[relevant].mean()),
        dropped=0.0 if relevant.all() else 1 - float(passed[~relevant].mean()),
        relevant=int(relevant.sum()),
    )
