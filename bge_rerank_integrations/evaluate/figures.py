"""The parts of a report that are counted rather than estimated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bge_rerank_integrations.evaluate.bootstrap import Array, Bootstrap, difference, estimate
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.measures import (
    Orders,
    Scored,
    measured,
    perfect,
    reranked,
)
from bge_rerank_integrations.evaluate.recommend import relevance
from bge_rerank_integrations.evaluate.report import (
    Candidates,
    Change,
    DepthRow,
    Histogram,
    Latency,
)
from bge_rerank_integrations.types import FloatArray

if TYPE_CHECKING:
    from ir_measures.measures import Measure

BINS = 40


@dataclass(frozen=True, slots=True)
class Judged:
    """What is the same for every reranker: the questions that count, and what is asked of them."""

    queries: Sequence[JudgedQuery]
    measures: "Sequence[Measure]"
    names: tuple[str, ...]
    depths: tuple[int, ...]
    bootstrap: Bootstrap


def candidates(data: Judged) -> Candidates:
    """What the first stage gave."""
    counts = [len(query.candidates) for query in data.queries]
    found = [int(relevance(query).sum()) for query in data.queries]
    best = measured(data.queries, perfect(data.queries), data.measures).mean(axis=0)
    return Candidates(
        most=max(counts),
        mean=float(np.mean(counts)),
        recall=float(_recall(data.queries, max(counts)).mean()),
        answerable=float(np.mean([number > 0 for number in found])),
        none_found=counts.count(0),
        best=dict(zip(data.names, best.tolist(), strict=True)),
    )


def _recall(queries: Sequence[JudgedQuery], depth: int) -> Array:
    """The share of each question's relevant passages among its first `depth` candidates."""
    relevant = [sum(grade >= 1 for grade in query.grades.values()) for query in queries]
    found = [int(relevance(query)[:depth].sum()) for query in queries]
    return np.array(found, dtype=np.float64) / np.array(relevant, dtype=np.float64)


def quality_by_depth(data: Judged, before: Array, scores: Sequence[FloatArray]) -> Array:
    """Each question's main measure without reranking and at each depth: [questions, 1 + depths]."""
    main = data.measures[:1]
    columns = [measured(data.queries, reranked(scores, d), main)[:, 0] for d in data.depths]
    return np.column_stack([before, *columns])


def depth_rows(data: Judged, by_depth: Array, scored: Scored) -> tuple[DepthRow, ...]:
    """A row for each depth; `by_depth` is what `quality_by_depth` gave."""
    means = data.bootstrap.means(by_depth)
    counts = np.array([len(query.candidates) for query in data.queries])
    rows = []
    for column, depth in enumerate(data.depths, start=1):
        share = np.minimum(depth, counts[counts > 0]) / counts[counts > 0]
        rows.append(
            DepthRow(
                depth=depth,
                quality=estimate(by_depth[:, column], means[:, column]),
                gain=difference(by_depth[:, 0], by_depth[:, column], means[:, 0], means[:, column]),
                recall=float(_recall(data.queries, depth).mean()),
                seconds=float(np.median(scored.seconds[counts > 0] * share)),
            )
        )
    return tuple(rows)


def latency(queries: Sequence[JudgedQuery], scored: Scored) -> Latency:
    """Over the questions that have candidates."""
    counts = np.array([len(query.candidates) for query in queries])
    seconds = scored.seconds[counts > 0]
    return Latency(
        median=float(np.median(seconds)),
        p95=float(np.quantile(seconds, 0.95)),
        ms_per_candidate=float(1000 * seconds.sum() / counts.sum()),
    )


def changes(
    queries: Sequence[JudgedQuery], orders: Orders, before: Array, after: Array
) -> list[Change]:
    """The questions whose main measure changed, the greatest gain first."""
    changed = []
    for place in np.argsort(before - after, kind="stable").tolist():
        if abs(after[place] - before[place]) < 1e-12:
            continue
        query, order = queries[place], orders[place]
        relevant, texts = relevance(query), list(query.candidates.values())
        changed.append(
            Change(
                id=query.id,
                question=query.text,
                before=float(before[place]),
                after=float(after[place]),
                rank_before=_first(relevant),
                rank_after=_first(relevant[order]),
                top_before=texts[0],
                top_after=texts[order[0]],
            )
        )
    return changed


def _first(relevant: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int | None:
    found = np.flatnonzero(relevant)
    return int(found[0]) + 1 if found.size else None


def histogram(queries: Sequence[JudgedQuery], scores: Sequence[FloatArray]) -> Histogram:
    """How the raw scores of relevant and other candidates spread."""
    raw = np.concatenate(scores).astype(np.float64)
    relevant = np.concatenate([relevance(query) for query in queries])
    edges = np.histogram_bin_edges(raw, bins=BINS)
    return Histogram(
        edges=tuple(edges.tolist()),
        relevant=tuple(np.histogram(raw[relevant], edges)[0].tolist()),
        others=tuple(np.histogram(raw[~relevant], edges)[0].tolist()),
    )
