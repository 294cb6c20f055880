"""Input files: their columns, fingerprint and rows.

A row of a Parquet or JSON-lines file is a pair, or a query with a list of passages. Rows are
numbered from 0 over all files in the given order; blank JSON lines are not counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_rerank_integrations.errors import InvalidInputError

PARQUET, JSON_LINES = (".parquet",), (".jsonl", ".ndjson")
OWN_COLUMNS = ("row", "score", "raw_score", "rank", "error", "message")
_READ_AT_ONCE = 1024


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


DEFAULT_COLUMNS = Columns()


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
    """One row; if it cannot be read, `problem` says why and `values` is empty."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of one file, from row `start`, or in JSON lines from byte `start`."""

    number: int
    file: Path
    start: int
    first_row: int
    rows: int


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The given files, and the files in the given folders, sorted by name.

    Raises `InvalidInputError` for a missing path, an unknown format, no files, and mixed formats.
    """
    files: list[Path] = []
    for place in inputs:
        if place.is_dir():
            files += sorted(f for f in place.iterdir() if f.suffix in PARQUET + JSON_LINES)
        elif place.is_file():
            files.append(place)
        else:
            raise InvalidInputError(f"there is no {place}")
    kinds = {"Parquet" if f.suffix in PARQUET else "JSON lines" for f in files}
    for file in files:
        if file.suffix not in PARQUET + JSON_LINES:
            raise InvalidInputError(
                f"{file} is neither .parquet nor .jsonl nor .ndjson; convert or rename it"
            )
    if len(kinds) != 1:
        raise InvalidInputError(
            "the input has both formats: rerank Parquet and JSON lines in two runs"
            if kinds
            else "there are no .parquet, .jsonl or .ndjson files in the input"
        )
    return files


def read_layout(files: Sequence[Path], columns: Columns) -> Layout:
    """The columns of the files, from the Parquet schema or the first valid JSON line.

    Raises `InvalidInputError` for a column that is missing or has another type than text.
    """
    found = _parquet_columns(files) if files[0].suffix in PARQUET else _json_columns(files)
    passage = columns.passage or next((c for c in ("passages", "passage") if c in found), "passage")
    query_id = columns.query_id or ("query_id" if "query_id" in found else None)
    layout = Layout(
        found.get(passage) == "list",
        columns.query,
        passage,
        query_id,
        tuple(name for name in columns.carry if name != query_id),
    )
    for name, kinds in ((layout.query, ("text",)), (layout.passage, ("text", "list"))):
        if found.get(name) not in kinds:
            raise InvalidInputError(
                f"{files[0]} has no column {name!r} that holds a {' or a '.join(kinds)}; "
                f"its columns are {', '.join(sorted(found)) or 'none'}"
            )
    for name in layout.copied:
        if files[0].suffix in PARQUET and name not in found:
            raise InvalidInputError(f"{files[0]} has no column {name!r} to copy")
        if name in OWN_COLUMNS:
            raise InvalidInputError(
                f"column {name!r} cannot be copied: the results have one of that name; rename it"
            )
    return layout


def copied_types(files: Sequence[Path], layout: Layout) -> list[tuple[str, pa.DataType]]:
    """Name and type of each copied column in the results; JSON values are copied as text."""
    if files[0].suffix not in PARQUET:
        return [(name, pa.string()) for name in layout.copied]
    schema = _schema(files[0])
    return [(name, schema.field(name).type) for name in layout.copied]


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files in their order, without their paths."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


class RowReader:
    """Reads shards, continuing where the last shard ended if they are consecutive.

    Parquet can only be read from the start of a row group, which would otherwise be read again for
    each shard.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._at: tuple[Path, int] | None = None

    def read(self, shard: Shard) -> list[Row]:
        if shard.file.suffix not in PARQUET:
            return list(islice(self._json_rows(shard), shard.rows))
        if self._at != (shard.file, shard.start):
            self._rows = parquet_rows(shard.file, self._layout.read, start=shard.start)
        rows = [
            Row(number, values)
            for number, values in enumerate(islice(self._rows, shard.rows), shard.first_row)
        ]
        if len(rows) != shard.rows:
            raise InvalidInputError(
                f"{shard.file} has only {len(rows)} of {shard.rows} rows from row {shard.start}; "
                "it was changed during the run"
            )
        self._at = (shard.file, shard.start + shard.rows)
        return rows

    def _json_rows(self, shard: Shard) -> Iterator[Row]:
        wanted = self._layout
        for number, (_, line) in enumerate(json_lines(shard.file, shard.start), shard.first_row):
            values = parse_line(line)
            if isinstance(values, str):
                yield Row(number, {}, values)
                continue
            row = {name: values.get(name) for name in (wanted.query, wanted.passage)}
            row |= {name: as_text(values.get(name)) for name in wanted.copied}
            yield Row(number, row)


def parquet_rows(file: Path, columns: list[str], *, start: int) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, from row `start`."""
    with reading(file), pq.ParquetFile(file, page_checksum_verification=True) as opened:
        for name in columns:
            opened.schema_arrow.field(name)  # or KeyError: a missing column would be left out
        groups = opened.metadata.num_row_groups
        group = 0
        while group < groups and start >= opened.metadata.row_group(group).num_rows:
            start -= opened.metadata.row_group(group).num_rows
            group += 1
        for batch in opened.iter_batches(
            batch_size=_READ_AT_ONCE, row_groups=range(group, groups), columns=columns
        ):
            yield from batch.slice(start).to_pylist()
            start = max(0, start - batch.num_rows)


def json_lines(file: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each nonblank line from byte `start`, with the byte where it starts."""
    with file.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if line.strip():
                yield start, line
            start += len(line)


def parse_line(line: bytes) -> dict[str, Any] | str:
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


def as_text(value: Any) -> str | None:
    """A JSON value for a text column: text unchanged, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise `InvalidInputError` with the file's name if it cannot be read as Parquet."""
    try:
        yield
    except InvalidInputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        # the reader's own message may quote a value of the file
        raise InvalidInputError(
            f"{file} cannot be read as Parquet ({type(error).__name__}): it is damaged, or was "
            "changed during the run; write it anew"
        ) from None


def _schema(file: Path) -> pa.Schema:
    with reading(file):
        return pq.read_schema(file)


def _parquet_columns(files: Sequence[Path]) -> dict[str, str]:
    first = _schema(files[0])
    for file in files[1:]:
        if not _schema(file).equals(first):
            raise InvalidInputError(
                f"{file} has other columns than {files[0]}; rerank them in two runs"
            )
    kinds = {}
    for field in first:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            kinds[field.name] = "text"
        elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            kinds[field.name] = "list"
        else:
            kinds[field.name] = str(field.type)
    return kinds


def _json_columns(files: Sequence[Path]) -> dict[str, str]:
    kinds: dict[type, str] = {str: "text", list: "list"}
    for file in files:
        for _, line in json_lines(file):
            values = parse_line(line)
            if isinstance(values, dict):
                return {k: kinds.get(type(v), type(v).__name__) for k, v in values.items()}
    raise InvalidInputError(f"{files[0]} has no line that is a JSON object")
