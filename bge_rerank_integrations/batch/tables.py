"""Scored and failed rows as the tables that are written."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from bge_rerank_integrations.base.raw_scores import show_score
from bge_rerank_integrations.batch.scoring import FailedRow, ScoredRow
from bge_rerank_integrations.batch.source import Layout
from bge_rerank_integrations.types import Scale

Copied = Sequence[tuple[str, pa.DataType]]
"""Name and type of each column that is copied from the input."""


def scored_table(
    scored: Sequence[ScoredRow], layout: Layout, copied: Copied, *, scale: Scale, normalize: bool
) -> pa.Table:
    """The row's number, what is copied, score, raw score and rank; lists where rows have lists.

    The score is the raw score as shown: see `reranker.show_score`.
    """
    raw = [row.raw.tolist() for row in scored]
    shown = [[show_score(r, scale, normalize=normalize) for r in some] for some in raw]
    ranks = [row.ranks for row in scored]
    columns = {"row": pa.array([row.row.number for row in scored], pa.int64())}
    columns |= {
        name: pa.array([row.row.values[name] for row in scored], kind) for name, kind in copied
    }
    for name, values, kind in (
        ("score", shown, pa.float64()),
        ("raw_score", raw, pa.float32()),
        ("rank", ranks, pa.int32()),
    ):
        if layout.lists:
            columns[name] = pa.array(values, pa.list_(kind))
        else:
            columns[name] = pa.array([value for (value,) in values], kind)
    return pa.table(columns)


def failed_table(failed: Sequence[FailedRow], layout: Layout, copied: Copied) -> pa.Table:
    """The row's number, its query id if there is one, the error's class and its message."""
    columns = {"row": pa.array([row.row.number for row in failed], pa.int64())}
    for name, kind in copied:
        if name == layout.query_id:
            columns[name] = pa.array([row.row.values.get(name) for row in failed], kind)
    columns["error"] = pa.array([row.error for row in failed], pa.string())
    columns["message"] = pa.array([row.message for row in failed], pa.string())
    return pa.table(columns)
