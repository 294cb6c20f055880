"""Read passages, requests and judgements from files or standard input, for every command.

Plain lines, JSON lines, CSV, TSV and Parquet are read; any other kind is refused by its name. Text
is UTF-8 whatever the console's encoding. Lines are read one at a time and end at a newline only: a
JSON text may hold Unicode's other line separators.
"""

import csv
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bge_rerank_integrations.errors import UnreadableInput, missing_extra
from bge_rerank_integrations.types import RerankResult

logger = logging.getLogger(__name__)

TEXT_FIELDS = ("passage", "text", "content", "contents", "page_content")
"""The fields that may hold a passage, the first of them that a row has."""

_JSON_LINES, _TABLES = (".jsonl", ".ndjson"), {".csv": None, ".tsv": "\t"}
_REQUEST = '{"query": "...", "passages": [...]}'
_UNREADABLE = {  # by the first bytes
    b"\x1f\x8b": "gzip-compressed: decompress it with gunzip -c and pipe that in",
    b"PK\x03\x04": "a zip archive or an Office file: save a spreadsheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Office file: save a spreadsheet as CSV",
    b"%PDF": "a PDF: extract its text first, for example with pdftotext",
    b"PAR1": "Parquet: give the file a name that ends in .parquet",
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, and the other fields of its row."""

    text: str
    carried: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its passages, the other keys of its object, and where it was read."""

    query: str
    passages: Sequence[Passage]
    carried: Mapping[str, Any]
    place: str


def read_rows(file: Path | None, *, json_lines: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield where each row was read, such as "line 3 of FILE", and its value.

    A row is a line of text; with `json_lines`, or a name in .jsonl or .ndjson, a JSON value; of a
    .csv, .tsv or .parquet file a dict by column. `file` None is standard input. Blank lines are
    skipped. Raises `UnreadableInput`, and `MissingExtra` for Parquet without pyarrow.
    """
    ending = "" if file is None else file.suffix.lower()
    if json_lines or ending in _JSON_LINES:
        return ((place, parse_json(place, text)) for place, text in read_lines(file))
    if ending in (".parquet", *_TABLES):
        assert file is not None  # noqa: S101 - it has an ending
        return _parquet(file) if ending == ".parquet" else _table(file, _TABLES[ending])
    if ending == ".json":
        raise UnreadableInput(
            f"{file} is named as one JSON document, but rows are read from lines: write one object "
            "or text per line, or give --jsonl if the file already has that form"
        )
    if ending == ".trec":
        raise UnreadableInput(
            f"{file} is named as a TREC run, which holds ids and no texts: evaluate it with "
            "bge-rerank eval --data FOLDER --run FILE"
        )
    return read_lines(file)


def read_passages(
    file: Path | None,
    *,
    json_lines: bool = False,
    text_field: str | None = None,
    id_field: str | None = None,
) -> list[Passage]:
    """Read a passage from each row; see `read_rows` for the kinds of files.

    In a row of fields the text is that of `text_field`, by default the first of `TEXT_FIELDS`; the
    title of a BEIR corpus (a "title" with a "text" or "contents") is put before it. `id_field` is
    carried as "id", the others under their own names.
    """
    passages, objects = [], True
    for place, row in read_rows(file, json_lines=json_lines):
        objects = objects and isinstance(row, str) and _is_json_object(row)
        passages.append(_passage(place, row, text_field, id_field))
    where = file or "standard input"
    if not passages:
        logger.warning("there are no passages in %s", where)
    elif objects:
        logger.warning(
            "each of the %d lines of %s is a JSON object, and all of it is scored as text; give "
            "--jsonl to score only its text field",
            len(passages),
            where,
        )
    return passages


def read_requests(file: Path | None) -> Iterator[Request]:
    """Yield a request for each line, `{"query": ..., "passages": [...]}`, before reading on."""
    place = None
    for place, line in read_lines(file):
        hint = (
            f"; without a QUERY argument each line must be a request, {_REQUEST}: to rank the "
            "lines themselves, give a QUERY"
        )
        request = parse_json(place, line, hint)
        if (
            not isinstance(request, dict)
            or not isinstance(request.get("query"), str)
            or not isinstance(request.get("passages"), list)
        ):
            raise UnreadableInput(f"{place} is not a request{hint}")
        passages = [
            _passage(f"passage {number} in {place}", value)
            for number, value in enumerate(request.pop("passages"), start=1)
        ]
        yield Request(request["query"], passages, request, place)
    if place is None:
        logger.warning("there are no requests in %s", file or "standard input")


def result_rows(
    passages: Sequence[Passage], results: Iterable[RerankResult], *, explain: bool = False
) -> Iterator[dict[str, Any]]:
    """Each result with its passage and the carried fields; the result's own keys come first.

    With `explain` there is "evidence", None if none was found.
    """
    for result in results:
        passage = passages[result.index]
        ours: dict[str, Any] = {"index": result.index}
        if result.scored:
            ours |= {"score": result.score, "raw_score": result.raw_score}
        else:  # JSON has no NaN
            ours |= {"score": None, "raw_score": None, "scored": False}
        if explain:
            ours["evidence"] = None if result.evidence is None else asdict(result.evidence)
        ours["passage"] = passage.text
        # "scored" of an earlier run may no longer be true
        kept = {k: v for k, v in passage.carried.items() if k not in ours and k != "scored"}
        yield {**ours, **kept}


def read_lines(file: Path | None) -> Iterator[tuple[str, str]]:
    """Yield where each nonblank line was read, and the line without its end."""
    for place, line in _decoded(file):
        if line.strip():
            yield place, line.rstrip("\r\n")


def parse_json(place: str, line: str, hint: str = "") -> Any:
    """The JSON value of a line; raises `UnreadableInput`, which does not quote the line."""
    try:
        return json.loads(line, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.colno}"
        raise UnreadableInput(f"{place} is not JSON: {why}{hint}") from None
    except (ValueError, RecursionError) as error:  # a number too long, a nesting too deep
        raise UnreadableInput(f"{place} is not JSON that can be read: {error}{hint}") from None


def _decoded(file: Path | None) -> Iterator[tuple[str, str]]:
    if file is None and (sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()):
        raise UnreadableInput(
            "there are no passages: write them after the query, name a --file, or pipe them in"
        )
    try:
        opened = nullcontext(sys.stdin.buffer) if file is None else file.open("rb")
    except FileNotFoundError:
        raise UnreadableInput(f"there is no {file}") from None
    with opened as stream:
        for number, line in enumerate(stream, start=1):
            place = f"line {number} of {file or 'standard input'}"
            for start, kind in _UNREADABLE.items() if number == 1 else ():
                if line.startswith(start):
                    raise UnreadableInput(f"{file or 'standard input'} is {kind}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UnreadableInput(
                    f"{place} is not UTF-8: its byte {error.start + 1} is "
                    f"0x{line[error.start]:02x}; save the input as UTF-8"
                ) from None
            if "\0" in text:
                raise UnreadableInput(
                    f"{place} holds a NUL byte, as text in UTF-16 does; save the input as UTF-8"
                )
            yield place, text


def _table(file: Path, delimiter: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with a header; fields of tab-separated values are never quoted."""
    lines = _decoded(file)
    place, header = next(((p, line) for p, line in lines if line.strip()), ("", ""))
    if not header:
        return
    delimiter = delimiter or max(",;\t|", key=header.count)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL

    def texts() -> Iterator[str]:
        nonlocal place
        yield header
        for place, line in lines:  # noqa: B007 - errors name the line last read
            yield line

    rows = csv.DictReader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                columns = len(rows.fieldnames or ())
                raise UnreadableInput(
                    f"{place} does not have the {columns} fields of the header; the delimiter is "
                    f"{delimiter!r}"
                )
            yield place, row
    except csv.Error as error:
        raise UnreadableInput(f"{place} is not a row of a table: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with missing_extra("ray"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(file) as opened:
            number = 0
            for batch in opened.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {file}", row
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        # the reader's own message may quote a value of the file
        raise UnreadableInput(
            f"{file} is not readable as Parquet ({type(error).__name__}): write it anew"
        ) from None


def _finite(number: str) -> float:
    # Python reads NaN, Infinity and 1e999, which no other reader of JSON accepts
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{number:.20} is not a JSON number; JSON has null for such values")
    return found


def _is_json_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _passage(
    place: str, row: Any, text_field: str | None = None, id_field: str | None = None
) -> Passage:
    if isinstance(row, str):
        return Passage(row, {})
    if not isinstance(row, dict):
        raise UnreadableInput(f"{place} is not a passage: it must be a text or an object")
    if id_field is not None and id_field not in row:
        raise UnreadableInput(f"{place} has no field {id_field!r}, which --id-field names")
    key = text_field or next((name for name in TEXT_FIELDS if name in row), None)
    if key is None and isinstance(row.get("passages"), list):
        raise UnreadableInput(
            f"{place} is a request with its own query and passages: leave out the QUERY argument"
        )
    text = None if key is None else row.get(key)
    if key is None or not isinstance(text, str):
        fields = repr(text_field) if text_field else " or ".join(map(repr, TEXT_FIELDS))
        raise UnreadableInput(
            f"{place} is not a passage: it has no text in the field {fields}; name the field "
            "with --text-field"
        )
    carried = {name: value for name, value in row.items() if name != key}
    title = row.get("title")
    if key in ("text", "contents") and not text_field and isinstance(title, str):
        text = f"{title} {text}".strip()
    return Passage(text, carried if id_field is None else {**carried, "id": row[id_field]})
