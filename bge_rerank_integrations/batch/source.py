"""Input files of pairs or of queries with passages: their columns, their fingerprint, their rows.

A Parquet or JSON-lines file holds either a pair in each row, or a query with a list of passages.
Rows are numbered from 0 over all files in the order given; blank lines of JSON are no rows.
"""

from __future__ import annotations

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
    """Which columns (or JSON keys) hold what.

    `passage` None means "passages", a list, or else "passage", one text, whichever the input has.
    `query_id` None means "query_id" if the input has it; pairs without one are grouped by the
    query's text. `carry` are columns to copy into the results, for example a passage's id.
    """

    query: str = "query"
    passage: str | None = None
    query_id: str | None = None
    carry: tuple[str, ...] = ()


DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns that the input turned out to have; `lists` if a row has many passages."""

    lists: bool
    query: str
    passage: str
    query_id: str | None
    carry: tuple[str, ...]

    @property
    def group(self) -> str:
        """The column that says which pairs are ranked against each other."""
        return self.query_id or self.query

    @property
    def copied(self) -> tuple[str, ...]:
        """The columns that results repeat, so that they can be joined to something."""
        return (() if self.query_id is None else (self.query_id,)) + self.carry

    @property
    def read(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys((self.query, self.passage, *self.copied)))


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read; `problem` says why it could not be, and then `values` is empty."""

    number: int
    values: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive rows of one file: `start` is a row of it, or in JSON lines a byte."""

    number: int
    file: Path
    start: int
    first_row: int
    rows: int


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """The files named, and those of each folder named, in the order of their names.

    Raises `InvalidInputError` for what is not there, for none, for two formats at once.
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
                f"{file} is neither .parquet nor .jsonl or .ndjson, so its format is not known"
            )
    if len(kinds) != 1:
        raise InvalidInputError(
            "the input has files of both formats: rerank Parquet and JSON lines in two runs"
            if kinds
            else "there are no .parquet, .jsonl or .ndjson files in the input"
        )
    return files


def read_layout(files: Sequence[Path], columns: Columns) -> Layout:
    """What the files hold, from their schema, or from the first line of JSON that can be read.

    Raises `InvalidInputError` for a column that is missing or of a type that is no text.
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
    """Name and type in the results of each copied column; what JSON holds is copied as text."""
    if files[0].suffix not in PARQUET:
        return [(name, pa.string()) for name in layout.copied]
    schema = pq.read_schema(files[0])
    return [(name, schema.field(name).type) for name in layout.copied]


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files in their order; where they lie does not matter."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


class RowReader:
    """Reads shards; shards that follow each other are read in one go.

    Parquet can only be read from the start of a row group, so going on where the last shard ended
    saves reading the group again for each shard.
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
                f"{shard.file} has {len(rows)} of the {shard.rows} rows from {shard.start} on: "
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
    """The rows of a Parquet file from row `start` on."""
    with pq.ParquetFile(file) as opened:
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
    """Each line that is not blank from byte `start` on, with the byte that it starts at."""
    with file.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if line.strip():
                yield start, line
            start += len(line)


def parse_line(line: bytes) -> dict[str, Any] | str:
    """The JSON object on a line, or why there is none, without a word of the line."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"the line is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"the line is not JSON: {error.msg}, column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number too long, lists nested too deeply
        return f"the line is no JSON that can be read: {type(error).__name__}"
    return values if isinstance(values, dict) else "the line is no JSON object"


def as_text(value: Any) -> str | None:
    """A JSON value as a column of text holds it: text as it is, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parquet_columns(files: Sequence[Path]) -> dict[str, str]:
    first = pq.read_schema(files[0])
    for file in files[1:]:
        if not pq.read_schema(file).equals(first):
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
