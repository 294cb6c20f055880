"""Parts of a server's answer that are safe to show: words that are neither private nor a key's.

Servers echo documents and keys in their errors (FastAPI's 422 contains the whole input), so only
message fields are read, and each word is checked before it is shown.
"""

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

from bge_rerank_integrations.errors import RemoteAnswerError
from bge_rerank_integrations.remote.messages import parse_json

MAX_BYTES = 1_000_000
MAX_CHARACTERS = 200
_MESSAGE_KEYS = ("error_type", "type", "code", "message", "error", "detail", "msg", "title")
_WORD = re.compile(r"[^\s\"'`;:()\[\]{}<>|=]+")
# words, possibly joined by hyphens and the like, and short numbers
_PLAIN = re.compile(r"[A-Za-z]{1,30}(?:[-_./][A-Za-z]{1,30}){0,4}|\d{1,6}")
_JOINT = re.compile(r"[-_./,]+")
_AROUND = ".,!?*"
_HIDDEN = "***"


def describe_status(status: int) -> str:
    """The status with its phrase, as in `429 Too Many Requests`."""
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def describe_body(body: bytes, private: Sequence[str], key: str | None) -> str:
    """At most 200 characters of the error's message, as `hide_private` shows them.

    Returns an empty string if nothing is left, or if the answer is large.
    """
    if len(body) > MAX_BYTES:
        return ""
    try:
        found = parse_json(body)
    except RemoteAnswerError:
        # axum answers with a line of plain text; an HTML page says nothing useful
        text = body[:MAX_CHARACTERS].decode("utf-8", "replace")
        found = None if "<" in text else {"message": text}
    messages = dict.fromkeys(text[: 4 * MAX_CHARACTERS] for text in _messages(found, depth=0))
    text = hide_private(" ".join(messages), private, key)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1].rstrip() + "…"


def hide_private(text: str, private: Sequence[str], key: str | None) -> str:
    """The plain words and short numbers of `text`, without those of the private texts or the key.

    Anything else, such as another key or encoded text, is hidden too.
    """
    folded = [one.casefold() for one in private]
    words = {word.strip(_AROUND) for one in folded for word in _WORD.findall(one)}
    words |= {part for word in words for part in _JOINT.split(word)}

    def is_private(part: str) -> bool:
        # servers cut texts anywhere, so a part of a private word counts, unless it is very short
        return part in words or (len(part) > 3 and any(part in one for one in folded))

    def shown(word: str) -> str:
        plain = word.strip(_AROUND)
        hidden = not _PLAIN.fullmatch(plain) or holds_key(plain, key)
        if hidden or any(map(is_private, _JOINT.split(plain.casefold()))):
            return _HIDDEN
        return word

    words_shown = " ".join(map(shown, _WORD.findall(text)))
    return re.sub(r"(?:\*\*\*\s*){2,}", "*** ", words_shown).strip()


def holds_key(text: str, key: str | None, *, limit: int = 3) -> bool:
    """Whether the text shares more than `limit` characters in a row with the key, or all of it.

    Case is ignored.
    """
    if key is None:
        return False
    text, key = text.casefold(), key.casefold()
    if len(key) <= limit:
        return text == key
    return any(key[start : start + limit + 1] in text for start in range(len(key) - limit))


def quote_name(name: object, key: str | None) -> str:
    """The name of a model or of its kind, for a message; a key may share a word with it."""
    return repr(_HIDDEN if holds_key(str(name), key, limit=7) else str(name)[:200])


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
