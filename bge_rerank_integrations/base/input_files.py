"""Passages and whole requests as lines of text or JSON, for the command line.

Lines are read as UTF-8 whatever the console's encoding is, one at a time, and end at a newline
only: a JSON text may hold Unicode's other line separators.
"""

import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.types import RerankResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage, and the other keys of the JSON object it came in."""

    text: str
    carried: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its passages, the object they came in without the passages, and its place."""

    query: str
    passages: Sequence[Passage]
    carried: Mapping[str, Any]
    place: str


def read_passages(file: Path | None, *, json_lines: bool = False) -> list[Passage]:
    """A passage for each line that is not blank; `file` None is standard input.

    In JSON lines, which a name in .jsonl or .ndjson is enough for, a line is a JSON text, or an
    object with one under "passage" or "text".
    """
    ending = "" if file is None else file.suffix.lower()
    if json_lines or ending in (".jsonl", ".ndjson"):
        return [_passage(place, _parsed(place, line)) for place, line in _lines(file)]
    if ending == ".json":
        raise UnreadableInput(
            f"{file} is one JSON document by its name, and passages are read from lines: write an "
            "object or a text in each line, or give --jsonl if that is what it holds"
        )
    passages = [Passage(line, {}) for _, line in _lines(file)]
    if passages and all(_is_json_object(passage.text) for passage in passages):
        logger.warning(
            "Each of the %d lines is a JSON object and is scored as it stands, keys and all; with "
            "--jsonl the text in it is the passage.",
            len(passages),
        )
    return passages


def read_requests(file: Path | None) -> Iterator[Request]:
    """A request for each line, `{"query": ..., "passages": [...]}`, before the next is read."""
    for place, line in _lines(file):
        request = _parsed(place, line)
        if (
            not isinstance(request, dict)
            or not isinstance(request.get("query"), str)
            or not isinstance(request.get("passages"), list)
        ):
            raise UnreadableInput(
                f"{place} is no request: without a QUERY argument each line must be "
                '{"query": "...", "passages": [...]}'
            )
        passages = [
            _passage(f"passage {number} in {place}", value)
            for number, value in enumerate(request.pop("passages"), start=1)
        ]
        yield Request(request["query"], passages, request, place)


def result_rows(
    passages: Sequence[Passage], results: Iterable[RerankResult], *, explain: bool = False
) -> Iterator[dict[str, Any]]:
    """Each result with its passage and what that carried; the result's own keys come first.

    With `explain` they have "evidence", None where there is none.
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
        # of an earlier run: what was left unscored then may be scored now
        kept = {k: v for k, v in passage.carried.items() if k not in ours and k != "scored"}
        yield {**ours, **kept}


def _lines(file: Path | None) -> Iterator[tuple[str, str]]:
    """Where each line stands, and the line, as soon as it is there; blank ones are left out."""
    if file is None and sys.stdin.isatty():
        raise UnreadableInput(
            "there are no passages: write them after the query, name a --file, or pipe them in"
        )
    with nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            place = f"line {number} of {file or 'standard input'}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UnreadableInput(
                    f"{place} is not UTF-8: its byte {error.start + 1} is "
                    f"0x{line[error.start]:02x}; save the input as UTF-8"
                ) from None
            if "\0" in text:
                raise UnreadableInput(
                    f"{place} holds a NUL byte, as text in UTF-16 does; save the input as UTF-8"
                )
            if text.strip():
                yield place, text


def _parsed(place: str, line: str) -> Any:
    try:
        return json.loads(line, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise UnreadableInput(f"{place} is not JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number too long, lists nested too deeply
        raise UnreadableInput(f"{place} is no JSON that can be read: {error}") from None


def _finite(number: str) -> float:
    # Python reads NaN and Infinity, and 1e999 as the latter; no other reader of JSON would
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{number:.20} is no number of JSON, which has null for such values")
    return found


def _is_json_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _passage(place: str, value: Any) -> Passage:
    if isinstance(value, str):
        return Passage(value, {})
    if isinstance(value, dict):
        key = "passage" if "passage" in value else "text"
        if isinstance(value.get(key), str):
            return Passage(value[key], {k: v for k, v in value.items() if k != key})
    raise UnreadableInput(
        f'{place} is no passage: it must be a text, or an object with one under "passage" or "text"'
    )
