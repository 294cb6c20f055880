"""Where the input is cut into shards, so that the rows of one query stay together."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bge_rerank_integrations.batch.source import (
    PARQUET,
    Layout,
    Shard,
    as_text,
    json_lines,
    parse_line,
)
from bge_rerank_integrations.errors import InvalidInputError

Run = tuple[Any, int]
"""A group's key and how many rows in a row have it."""


def cut_into_shards(files: Sequence[Path], layout: Layout, *, shard_rows: int) -> list[Shard]:
    """Shards of `shard_rows` rows, or as many more as the last query of a shard takes.

    The same files and numbers give the same shards. Raises `InvalidInputError` where the pairs of
    a query do not stand together: they could not be ranked without sorting the whole input.
    """
    if shard_rows < 1:
        raise InvalidInputError(f"shard_rows is {shard_rows}; it must be at least 1")
    shards: list[Shard] = []
    groups = _Groups()
    row = 0
    for file in files:
        if file.suffix in PARQUET:
            cuts = _parquet_cuts(file, layout, groups, row, shard_rows)
        else:
            cuts = _json_cuts(file, layout, groups, row, shard_rows)
        for start, rows in cuts:
            shards.append(Shard(len(shards), file, start, row, rows))
            row += rows
    if not shards:
        raise InvalidInputError(f"there are no rows in {', '.join(map(str, files))}")
    groups.refuse_scattered(layout.group)
    return shards


class _Groups:
    """Which queries began where; 16 bytes each, because there may be many millions."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._rows = array("q")

    def began(self, key: Any, row: int) -> None:
        if key is not None:  # a row without a key is an error of its own, found when it is scored
            self._digests += blake2b(repr(key).encode("utf-8", "replace"), digest_size=8).digest()
            self._rows.append(row)

    def refuse_scattered(self, column: str) -> None:
        # With 64 bits, ten million queries collide with a chance of 3 in a million; then an input
        # is refused that was in order, and no score is wrong.
        digests = np.frombuffer(self._digests, dtype=np.uint64)
        order = np.argsort(digests, kind="stable")
        again = np.flatnonzero(digests[order][1:] == digests[order][:-1])
        if len(again):
            first, second = (self._rows[order[again[0] + step]] for step in (0, 1))
            raise InvalidInputError(
                f"the rows of a query do not stand together: rows {first} and {second} have the "
                f"same {column!r}, with others or the end of a file between them; sort the input "
                f"by {column!r}, and keep a query in one file"
            )


def _parquet_cuts(
    file: Path, layout: Layout, groups: _Groups, first_row: int, shard_rows: int
) -> Iterator[tuple[int, int]]:
    with pq.ParquetFile(file) as opened:
        total = opened.metadata.num_rows
        if layout.lists:
            runs: Iterable[Run] = ((None, 1) for _ in range(total))
        else:
            columns = [layout.group]
            runs = _runs(b.column(0) for b in opened.iter_batches(65536, columns=columns))
        start = rows = 0
        for key, length in _joined(runs) if not layout.lists else runs:
            if rows >= shard_rows:
                yield start, rows
                start, rows = start + rows, 0
            groups.began(key, first_row + start + rows)
            rows += length
        if rows:
            yield start, rows


def _runs(columns: Iterator[pa.Array]) -> Iterator[Run]:
    for column in columns:
        encoded = pc.run_end_encode(column)
        ends = encoded.run_ends.to_numpy()
        lengths = np.diff(ends, prepend=0)
        yield from zip(encoded.values.to_pylist(), lengths.tolist(), strict=True)


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Runs of one key that touch, from two batches or with keyless rows between, made one."""
    current: Any = None
    length = 0
    for key, more in runs:
        if length and key is not None and current is not None and key != current:
            yield current, length
            length = 0
        current = key if key is not None else current
        length += more
    if length:
        yield current, length


def _json_cuts(
    file: Path, layout: Layout, groups: _Groups, first_row: int, shard_rows: int
) -> Iterator[tuple[int, int]]:
    start: int | None = None
    current: Any = None
    rows = done = 0
    for place, line in json_lines(file):
        key = None if layout.lists else _key(line, layout)
        begins = layout.lists or (key is not None and key != current)
        if begins and rows >= shard_rows and start is not None:
            yield start, rows
            start, done, rows = None, done + rows, 0
        start = place if start is None else start
        if begins:
            groups.began(key, first_row + done + rows)
        current = key if key is not None else current
        rows += 1
    if start is not None:
        yield start, rows


def _key(line: bytes, layout: Layout) -> Any:
    values = parse_line(line)
    if isinstance(values, str):
        return None
    key = values.get(layout.group)
    # as the results copy it, so that 7 and "7" are one query there and here
    return as_text(key) if layout.query_id else key
