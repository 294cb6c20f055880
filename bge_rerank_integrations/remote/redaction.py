"""Quotes from a server's error that are safe to show: its status, and words that are not private.

Servers echo documents in their errors (FastAPI's 422 contains the whole input), so only message
fields are read, and each word is checked before it is shown.
"""

import json
import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

MAX_CHARACTERS = 200
_MESSAGE_KEYS = ("error_type", "type", "code", "message", "error", "detail", "msg", "title")
_WORD = re.compile(r"[^\s\"'`,;:()\[\]{}<>|=]+")
# words, possibly joined by hyphens and the like, and short numbers
_PLAIN = re.compile(r"[A-Za-z]{1,30}(?:[-_./][A-Za-z]{1,30}){0,4}|\d{1,6}")
_HIDDEN = "***"


def describe_status(status: int) -> str:
    """The status with its phrase, as in `429 Too Many Requests`."""
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def describe_body(body: bytes, private: Sequence[str]) -> str:
    """At most 200 characters of the error's message, without words from the `private` texts.

    Anything that is not a plain word or a short number, such as a key or encoded text, is hidden.
    Returns an empty string if nothing is left.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        # axum answers with a line of plain text; an HTML page says nothing useful
        text = body[:MAX_CHARACTERS].decode("utf-8", "replace")
        found = None if "<" in text else {"message": text}
    folded = [text.casefold() for text in private]
    words = {word.strip(".!?*") for text in folded for word in _WORD.findall(text)}

    def shown(word: str) -> str:
        plain = word.strip(".!?*")
        lowered = plain.casefold()
        # servers cut texts anywhere, so a part of a private word counts, unless it is very short
        is_private = lowered in words or (len(lowered) > 3 and any(lowered in t for t in folded))
        return _HIDDEN if is_private or not _PLAIN.fullmatch(plain) else word

    messages = dict.fromkeys(text[: 4 * MAX_CHARACTERS] for text in _messages(found, depth=0))
    said = " ".join(shown(word) for message in messages for word in _WORD.findall(message))
    said = re.sub(r"(?:\*\*\*\s*){2,}", "*** ", said).strip()
    return said if len(said) <= MAX_CHARACTERS else said[: MAX_CHARACTERS - 1].rstrip() + "…"


def _messages(found: Any, *, depth: int) -> Iterator[str]:
    """The texts in an error's message fields."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, int) and not isinstance(found, bool):
        yield str(found)
    elif depth <= 3 and isinstance(found, list):
        for item in found[:3]:
            yield from _messages(item, depth=depth + 1)
    elif depth <= 3 and isinstance(found, dict):
        for key in _MESSAGE_KEYS:
            yield from _messages(found.get(key), depth=depth + 1)
