"""Input files: their columns, fingerprint, shards and rows.

A row of a Parquet or JSON-lines file is a pair, or a query with a list of passages. Rows are
numbered from 0 over all files in the given order; blank JSON lines are not counted. A shard is
consecutive rows of one file, with all rows of each of its queries.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.errors import InvalidInputError

PARQUET, JSON_LINES = (".parquet",), (".jsonl", ".ndjson")
OWN_COLUMNS = ("row", "score", "raw_score", "rank", "error", "message")
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns, or JSON keys.

    `passage` None is "passages", a list, or "passage", a text, whichever the input has. `query_id`
    None is "query_id" if the input has it; otherwise pairs are grouped by the query's text. `carry`
    are columns to copy to the results, for example the passage's id.
    """

    query: str = "query"
    passage: str | None = None
    query_id: str | None = None
    carry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns found in the input; `lists` if a row has a list of passages."""

    lists: bool
    query: str
    passage: str
    query_id: str | None
    carry: tuple[str, ...]

    @property
    def group(self) -> str:
        """The column whose equal values are ranked together."""
        return self.query_id or self.query

    @property
    def copied(self) -> tuple[str, ...]:
        """The columns that are copied to the results."""
        return (() if self.query_id is None else (self.query_id,)) + self.carry

    @property
    def read(self) -> list[str]:
        """The distinct columns to read."""
        return list(dict.fromkeys((self.query, self.passage, *self.copied)))


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number and values, or the reason why it cannot be read."""

    number: int
    values: dict[str, Any] | str


@dataclass(slots=True)
class Shard:
    """Consecutive rows of one file, from row `start`, or in JSON lines from byte `start`."""

    number: int
    file: str
    start: int
    first_row: int
    rows: int = 0


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The given files, and the files in the given folders, sorted by name.

    Raises `InvalidInputError` for a missing path, an unknown format, no files, and mixed formats.
    """
    files: list[Path] = []
    for place in inputs:
        if place.is_dir():
            files += sorted(f for f in place.iterdir() if f.suffix in PARQUET + JSON_LINES)
        elif not place.is_file():
            raise InvalidInputError(f"there is no {place}")
        elif place.suffix not in PARQUET + JSON_LINES:
            raise InvalidInputError(
                f"{place} is neither .parquet nor .jsonl nor .ndjson; convert or rename it"
            )
        else:
            files.append(place)
    if not files:
        raise InvalidInputError("there are no .parquet, .jsonl or .ndjson files in the input")
    if len({file.suffix in PARQUET for file in files}) > 1:
        raise InvalidInputError(
            "the input has both formats: rerank Parquet and JSON lines in two runs"
        )
    return files


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files in their order, without their paths."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def read_layout(files: Sequence[Path], columns: Columns) -> tuple[Layout, list[pa.Field]]:
    """The columns of the files, and the type of each copied one.

    They come from the Parquet schema, or the first valid JSON line; JSON values are copied as text.
    Raises `InvalidInputError` for a column that is missing or has another type than text.
    """
    parquet = files[0].suffix in PARQUET
    found = _parquet_types(files) if parquet else _json_types(files)
    passage = columns.passage or ("passages" if "passages" in found else "passage")
    query_id = columns.query_id or ("query_id" if "query_id" in found else None)
    kinds = {name: _kind(found[name]) for name in found}
    layout = Layout(
        kinds.get(passage) == "list",
        columns.query,
        passage,
        query_id,
        tuple(name for name in columns.carry if name != query_id),
    )
    for name, wanted in ((layout.query, ("text",)), (layout.passage, ("text", "list"))):
        if kinds.get(name) not in wanted:
            raise InvalidInputError(
                f"{files[0]} has no column {name!r} that holds a {' or a '.join(wanted)}; "
                f"its columns are {', '.join(sorted(kinds)) or 'none'}"
            )
    for name in layout.copied:
        if parquet and name not in found:
            raise InvalidInputError(f"{files[0]} has no column {name!r} to copy")
        if name in OWN_COLUMNS:
            raise InvalidInputError(
                f"column {name!r} cannot be copied: the results have one of that name; rename it"
            )
    types = {name: found[name] if parquet else pa.string() for name in layout.copied}
    return layout, [pa.field(name, kind) for name, kind in types.items()]


def _parquet_types(files: Sequence[Path]) -> dict[str, pa.DataType]:
    schemas = []
    for file in files:
        with _reading(file):
            schemas.append(pq.read_schema(file))
        if not schemas[-1].equals(schemas[0]):
            raise InvalidInputError(
                f"{file} has other columns than {files[0]}; rerank them in two runs"
            )
    return {field.name: field.type for field in schemas[0]}


def _json_types(files: Sequence[Path]) -> dict[str, pa.DataType]:
    """The keys of the first object; for one that is null there, the type of its first value."""
    kinds: dict[type, pa.DataType] = {str: pa.string(), list: pa.list_(pa.string())}
    found: dict[str, pa.DataType] = {}
    for file in files:
        for _, line in _json_lines(file):
            values = _parse_line(line)
            if isinstance(values, dict):
                found = found or dict.fromkeys(values, pa.null())
                for name in found:
                    if found[name] == pa.null() and values.get(name) is not None:
                        found[name] = kinds.get(type(values[name]), pa.float64())
                if pa.null() not in found.values():
                    return found
    if not found:
        raise InvalidInputError(f"{files[0]} has no line that is a JSON object")
    return found


def _kind(found: pa.DataType) -> str | None:
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return "text"
    return "list" if pa.types.is_list(found) or pa.types.is_large_list(found) else None


def cut_into_shards(files: Sequence[Path], layout: Layout, *, shard_rows: int) -> list[Shard]:
    """Shards of `shard_rows` rows, and the remaining rows of the last query.

    The same files and numbers give the same shards. Raises `InvalidInputError` if the rows of a
    query are not contiguous: ranking them would require sorting the whole input.
    """
    if shard_rows < 1:
        raise InvalidInputError(f"shard_rows is {shard_rows}; it must be at least 1")
    shards: list[Shard] = []
    # 16 bytes for each query, of which there may be millions
    digests, first_rows = bytearray(), array("q")
    row = 0
    for file in files:
        shard = current = None
        for start, key in _keys(file, layout):
            # a row without a key belongs to the current query: scoring reports it as an error
            begins = key is not None and key != current
            if shard is None or ((begins or layout.lists) and shard.rows >= shard_rows):
                shard = Shard(len(shards), str(file), start, row)
                shards.append(shard)
            if begins:
                current = key
                text = repr(key).encode("utf-8", "replace")
                digests += hashlib.blake2b(text, digest_size=8).digest()
                first_rows.append(row)
            shard.rows += 1
            row += 1
    if not shards:
        raise InvalidInputError(f"there are no rows in {', '.join(map(str, files))}")
    # With 64 bits, ten million queries collide with a probability of 3 in a million. Then a valid
    # input is refused; no score is wrong.
    found = np.frombuffer(digests, dtype=np.uint64)
    order = np.argsort(found, kind="stable")
    again = np.flatnonzero(np.diff(found[order]) == 0)
    if len(again):
        first, second = (first_rows[place] for place in order[again[0] : again[0] + 2])
        raise InvalidInputError(
            f"rows of one query must be contiguous: rows {first} and {second} have the same "
            f"{layout.group!r}, with other rows or the end of a file between them; sort the input "
            f"by {layout.group!r}, and keep each query in one file"
        )
    return shards


def _keys(file: Path, layout: Layout) -> Iterator[tuple[int, Any]]:
    """Start and key of each row; rows with lists have no key."""
    if file.suffix in PARQUET:
        columns = [] if layout.lists else [layout.group]
        for start, values in enumerate(_parquet_rows(file, columns, 0)):
            yield start, values.get(layout.group)
        return
    for start, line in _json_lines(file):
        parsed = None if layout.lists else _parse_line(line)
        key = parsed.get(layout.group) if isinstance(parsed, dict) else None
        # as the results copy it, so that 7 and "7" are one query in both places
        yield start, _as_text(key) if layout.query_id else key


class RowReader:
    """Reads shards, continuing where the last shard ended if they are consecutive.

    Parquet can only be read from the start of a row group, which would otherwise be read again for
    each shard.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._rows: Iterator[dict[str, Any] | str] = iter(())
        self._next: tuple[str, int] | None = None

    def read(self, shard: Shard) -> list[Row]:
        if self._next != (shard.file, shard.first_row):
            file, layout = Path(shard.file), self._layout
            if file.suffix in PARQUET:
                self._rows = _parquet_rows(file, layout.read, shard.start)
            else:
                self._rows = _json_rows(file, layout, shard.start)
        values = islice(self._rows, shard.rows)
        rows = [Row(number, found) for number, found in enumerate(values, shard.first_row)]
        if len(rows) != shard.rows:
            raise InvalidInputError(
                f"{shard.file} has only {len(rows)} of {shard.rows} rows from row "
                f"{shard.first_row}; it was changed during the run"
            )
        self._next = shard.file, shard.first_row + shard.rows
        return rows


def _parquet_rows(file: Path, columns: list[str], start: int) -> Iterator[dict[str, Any]]:
    with _reading(file), pq.ParquetFile(file, page_checksum_verification=True) as opened:
        for name in columns:
            opened.schema_arrow.field(name)  # or KeyError: a missing column would be left out
        groups = opened.metadata.num_row_groups
        group = 0
        while group < groups and start >= opened.metadata.row_group(group).num_rows:
            start -= opened.metadata.row_group(group).num_rows
            group += 1
        kept = range(group, groups)
        for batch in opened.iter_batches(_ROWS_AT_ONCE, row_groups=kept, columns=columns):
            yield from batch.slice(start).to_pylist()
            start = max(0, start - batch.num_rows)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise `InvalidInputError` with the file's name if it cannot be read as Parquet."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        # the reader's own message may quote a value of the file
        raise InvalidInputError(
            f"{file} cannot be read as Parquet ({type(error).__name__}): it is damaged, was "
            "changed during the run, or has a row group that does not fit into memory; write it "
            "anew"
        ) from None


def _json_rows(file: Path, layout: Layout, start: int) -> Iterator[dict[str, Any] | str]:
    for _, line in _json_lines(file, start):
        values = _parse_line(line)
        if isinstance(values, dict):
            row = {name: values.get(name) for name in (layout.query, layout.passage)}
            yield row | {name: _as_text(values.get(name)) for name in layout.copied}
        else:
            yield values


def _json_lines(file: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each nonblank line from byte `start`, with the byte where it starts."""
    with file.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if line.strip():
                yield start, line
            start += len(line)


def _parse_line(line: bytes) -> dict[str, Any] | str:
    """The JSON object on a line, or the reason why there is none, which does not quote the line."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"the line is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"the line is not JSON: {error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number too long, lists nested too deeply
        return f"the line cannot be read as JSON: {type(error).__name__}"
    return values if isinstance(values, dict) else "the line is not a JSON object"


def _as_text(value: Any) -> str | None:
    """A JSON value for a text column: text unchanged, anything else as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return check_text(text, "value")
