"""What may be said of a server's refusal: its status, and words that are surely not the user's.

Servers echo documents in their errors: FastAPI's 422 holds the whole input. So words are let
through one by one, and only from the fields that hold messages.
"""

import json
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Any

LONGEST = 200
_CODES = ("error_type", "type", "code")
_MESSAGES = ("message", "error", "detail", "msg", "title")
_WORD = re.compile(r"[^\s\"'`,;:()\[\]{}<>|=]+")
# a plain word, also one with a hyphen or underscore, or a short number
_PLAIN = re.compile(r"[A-Za-z]{1,30}(?:[-_./][A-Za-z]{1,30}){0,4}|\d{1,6}")
_HIDDEN = "***"


def describe_status(status: int) -> str:
    """The status with its phrase, as in `429 Too Many Requests`."""
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def describe_body(body: bytes, private: Sequence[str]) -> str:
    """At most 200 characters of an error's message, without what occurs in a `private` text.

    What is no plain word or short number is hidden too: an escaped or encoded text, a key. An
    empty string if there is nothing to say.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        # a page of HTML says nothing; axum's refusals are one line of plain text
        text = body[:LONGEST].decode("utf-8", "replace")
        found = None if "<" in text else {"message": text}
    kept = [text for text in dict.fromkeys(_texts(found, depth=0)) if len(text.strip()) > 0]
    folded = [text.casefold() for text in private]
    words = {word.strip(".!?*") for text in folded for word in _WORD.findall(text)}
    said = " ".join(_redacted(text[: 4 * LONGEST], folded, words) for text in kept).strip()
    said = re.sub(r"(?:\*\*\*\s*){2,}", "*** ", said)
    return said if len(said) <= LONGEST else said[: LONGEST - 1].rstrip() + "…"


def _texts(found: Any, *, depth: int) -> list[str]:
    if depth > 3:
        return []
    if isinstance(found, str):
        return [found]
    if isinstance(found, list):
        return [text for item in found[:3] for text in _texts(item, depth=depth + 1)]
    if not isinstance(found, dict):
        return []
    texts: list[str] = []
    for key in (*_CODES, *_MESSAGES):
        value = found.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            texts.append(str(value))
        else:
            texts += _texts(value, depth=depth + 1)
    return texts


def _redacted(text: str, private: Sequence[str], words: AbstractSet[str]) -> str:
    def allowed(word: str) -> str:
        plain = word.strip(".!?*")
        folded = plain.casefold()
        # a server may cut a text anywhere, so a part of a word counts, but not two letters of it
        is_private = folded in words or (len(folded) > 3 and any(folded in t for t in private))
        return _HIDDEN if is_private or not _PLAIN.fullmatch(plain) else word

    return " ".join(allowed(word) for word in _WORD.findall(text))
