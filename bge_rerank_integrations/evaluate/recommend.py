"""What to set: how many candidates to rerank, how many results to keep, which score to ask for.

Each rule is stated once, here, and its interval comes from the same resamples as all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bge_rerank_integrations.evaluate.bootstrap import Array, Bootstrap, Estimate
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.measures import Orders
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import FloatArray

SHARE = 0.95
"""What a recommendation keeps: of the gain, of the questions, of the relevant passages."""

STEPS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True)
class Depth:
    """How many candidates to rerank, with the range of what the resamples would recommend.

    The rule: the smallest depth tried that has 95% of the gain of the best depth tried.
    """

    value: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TopN:
    """How many results to keep, with its range.

    The rule: of the questions whose candidates hold a relevant passage, 95% have one so far up.
    """

    value: int
    low: int
    high: int
    questions: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """Which raw score to ask for: that which keeps 95% of the relevant candidates.

    `shown` is the same on the scale that `score_threshold` takes. `kept` is the share of relevant
    candidates at or above it, `dropped` that of the other candidates below it; among these may be
    relevant ones that nobody judged. On other questions the share kept will be another. `below` is
    the highest score shown of a candidate that it drops, None if it keeps all: any number above
    that, up to `shown`, does the same.
    """

    raw: Estimate
    shown: Estimate
    below: float | None
    kept: float
    dropped: float
    relevant: int


def depths_to_try(longest: int) -> tuple[int, ...]:
    """Round numbers below the longest list of candidates, and that."""
    return (*(step for step in STEPS if step < longest), longest)


def recommend_depth(depths: Sequence[int], values: Array, bootstrap: Bootstrap) -> Depth | None:
    """See `Depth`; None if no depth gains anything.

    `values` has the quality of each question, [questions, 1 + depths]; its first column is that
    of the first stage.
    """
    (now,) = _chosen(values.mean(axis=0, keepdims=True))
    if now < 0:
        return None
    again = _chosen(bootstrap.means(values))
    low, high = np.quantile(again[again >= 0], [0.025, 0.975], method="inverted_cdf")
    return Depth(depths[int(now)], depths[int(low)], depths[int(high)])


def _chosen(means: Array) -> Array:
    """The place of the depth to recommend in each row, or -1."""
    gains = means[:, 1:] - means[:, :1]
    best = gains.max(axis=1)
    places = (gains >= SHARE * best[:, None] - 1e-12).argmax(axis=1)
    return np.where(best > 1e-12, places, -1).astype(np.float64)


def recommend_top_n(
    queries: Sequence[JudgedQuery], orders: Orders, depth: int, bootstrap: Bootstrap
) -> TopN | None:
    """See `TopN`; None if no question has a relevant passage among its first `depth` candidates."""
    ranks, owners = [], []
    for number, (query, order) in enumerate(zip(queries, orders, strict=True)):
        relevant = relevance(query)
        found = np.flatnonzero(relevant[order][:depth])
        if found.size:
            ranks.append(float(found[0] + 1))
            owners.append(number)
    if not ranks:
        return None
    rank = bootstrap.covering(np.array(ranks), np.array(owners), SHARE)
    return TopN(int(rank.value), int(rank.low), int(rank.high), len(ranks))


def recommend_threshold(
    queries: Sequence[JudgedQuery],
    scores: Sequence[FloatArray],
    depth: int,
    reranker: Reranker,
    bootstrap: Bootstrap,
) -> Threshold | None:
    """See `Threshold`; of the first `depth` candidates of each question. None if none is relevant.

    A raw score is a float32, and the threshold is the score of a candidate, so `>=` keeps it.
    """
    raw = np.concatenate([some[:depth] for some in scores]).astype(np.float64)
    relevant = np.concatenate([relevance(query)[:depth] for query in queries])
    counts = [min(depth, len(some)) for some in scores]
    owners = np.repeat(np.arange(len(queries)), counts)
    if not relevant.any():
        return None
    # the largest number that enough scores reach is the smallest that their negatives do not exceed
    found = bootstrap.covering(-raw[relevant], owners[relevant], SHARE)
    limit = Estimate(-found.value, -found.high, -found.low)
    shown = Estimate(*(reranker.shown(end) for end in (limit.value, limit.low, limit.high)))
    # as it is used: two raw scores next to each other may be one probability
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


def relevance(query: JudgedQuery) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each candidate is relevant: judged, with a grade of 1 or more."""
    return np.array([query.grades.get(key, 0) >= 1 for key in query.candidates], dtype=bool)
