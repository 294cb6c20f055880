"""Cut the input into shards, keeping the rows of each query together."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bge_rerank_integrations.batch.source import (
    PARQUET,
    Layout,
    Shard,
    as_text,
    json_lines,
    parse_line,
    reading,
)
from bge_rerank_integrations.errors import InvalidInputError

KeyRun = tuple[int, Any, int]
"""Consecutive rows of one key: their start (a row, or in JSON lines a byte), key and number."""

_KEYS_AT_ONCE = 65_536


def cut_into_shards(files: Sequence[Path], layout: Layout, *, shard_rows: int) -> list[Shard]:
    """Shards of `shard_rows` rows, and the remaining rows of the last query.

    The same files and numbers give the same shards. Raises `InvalidInputError` if the rows of a
    query are not contiguous: ranking them would require sorting the whole input.
    """
    if shard_rows < 1:
        raise InvalidInputError(f"shard_rows is {shard_rows}; it must be at least 1")
    shards: list[Shard] = []
    queries = _QueryStarts()
    row = 0
    for file in files:
        runs = _parquet_runs(file, layout) if file.suffix in PARQUET else _json_runs(file, layout)
        for start, rows in _cut(runs, layout, queries, row, shard_rows):
            shards.append(Shard(len(shards), file, start, row, rows))
            row += rows
    if not shards:
        raise InvalidInputError(f"there are no rows in {', '.join(map(str, files))}")
    queries.check_contiguous(layout.group)
    return shards


class _QueryStarts:
    """The first row of each query; 16 bytes a query, because there may be millions."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._rows = array("q")

    def add(self, key: Any, row: int) -> None:
        self._digests += blake2b(repr(key).encode("utf-8", "replace"), digest_size=8).digest()
        self._rows.append(row)

    def check_contiguous(self, column: str) -> None:
        # With 64 bits, ten million queries collide with a probability of 3 in a million. Then a
        # valid input is refused; no score is wrong.
        digests = np.frombuffer(self._digests, dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        again = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        if len(again):
            first, second = (self._rows[order[again[0] + step]] for step in (0, 1))
            raise InvalidInputError(
                f"rows of one query must be contiguous: rows {first} and {second} have the same "
                f"{column!r}, with other rows or the end of a file between them; sort the input by "
                f"{column!r}, and keep each query in one file"
            )


def _cut(
    runs: Iterator[KeyRun], layout: Layout, queries: _QueryStarts, first_row: int, shard_rows: int
) -> Iterator[tuple[int, int]]:
    """Start and number of rows of each shard of one file."""
    start: int | None = None
    current: Any = None
    rows = done = 0
    for place, key, count in runs:
        # a row without a key belongs to the current query: scoring reports it as an error
        begins = layout.lists or (key is not None and key != current)
        if begins and rows >= shard_rows and start is not None:
            yield start, rows
            start, done, rows = None, done + rows, 0
        start = place if start is None else start
        if key is not None and key != current:
            queries.add(key, first_row + done + rows)
            current = key
        rows += count
    if start is not None:
        yield start, rows


def _parquet_runs(file: Path, layout: Layout) -> Iterator[KeyRun]:
    with reading(file), pq.ParquetFile(file) as opened:
        if layout.lists:
            yield from ((row, None, 1) for row in range(opened.metadata.num_rows))
            return
        row = 0
        for batch in opened.iter_batches(_KEYS_AT_ONCE, columns=[layout.group]):
            encoded = pc.run_end_encode(batch.column(0))
            lengths = np.diff(encoded.run_ends.to_numpy(), prepend=0).tolist()
            for key, length in zip(encoded.values.to_pylist(), lengths, strict=True):
                yield row, key, length
                row += length


def _json_runs(file: Path, layout: Layout) -> Iterator[KeyRun]:
    for place, line in json_lines(file):
        values = None if layout.lists else parse_line(line)
        key = values.get(layout.group) if isinstance(values, dict) else None
        # as the results copy it, so that 7 and "7" are one query in both places
        yield place, as_text(key) if layout.query_id else key, 1
