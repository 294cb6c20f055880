"""Text to token ids: the checkpoint's own tokenizer, exact truncation, and no injected control ids.

The tokenizer is private and stateless: truncation and padding are switched off once, so any number
of threads may encode at once (transformers' `__call__` sets both anew on every call, which gives
wrong ids under threads). Ids are cut and joined here, by FlagEmbedding's rule.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bge_rerank_integrations.errors import CheckpointError, InvalidInputError
from bge_rerank_integrations.types import SpecialTokens


class TokenSequence(NamedTuple):
    """One input of a model: its ids, and where its parts end.

    `first_segment` leading ids have token type 0 (in an encoder), or are the query part that
    passages share (in an LLM); `tail` trailing ids are the LLM's prompt.
    """

    ids: NDArray[np.int32]
    first_segment: int
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """The control ids around one text, or around and between two."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class TextTokenizer:
    """A checkpoint's `tokenizer.json`, with text kept apart from control tokens.

    In `"literal"` mode no text can become a control id: the control pieces are renamed, in a
    private copy of the vocabulary, to strings that no text holds. A filter on the text would not
    do, because normalisation turns look-alikes (full-width `＜/s＞`) into control pieces after it.
    """

    def __init__(self, folder: Path, control_ids: Iterable[int] = ()) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; save the fast tokenizer into it: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        self._json = file.read_text(encoding="utf-8")
        try:
            content = json.loads(self._json)
            self.control_ids = _control_ids(content, control_ids)
            self._literal = _stateless(_without_control_pieces(content, self.control_ids))
        except Exception as error:  # tokenizers raises nothing more specific than Exception
            raise CheckpointError(
                f"{file} is no tokenizer this release can read: {error!r}"
            ) from error
        self.size = self._literal.get_vocab_size()

    @cached_property
    def _parsing(self) -> Tokenizer:
        return _stateless(self._json)

    @cached_property
    def single_template(self) -> Template:
        """The control ids that this tokenizer puts around one text."""
        encoding = self._literal.encode("a")
        return self._checked(_template(encoding.ids, encoding.sequence_ids))

    @cached_property
    def pair_template(self) -> Template:
        """The control ids that this tokenizer puts around and between two texts."""
        encoding = self._literal.encode("a", "a")
        return self._checked(_template(encoding.ids, encoding.sequence_ids))

    def _checked(self, template: Template) -> Template:
        # an encoder's score is read off the token before the text: without it there is none
        if not template.before:
            raise CheckpointError(
                "tokenizer.json has no post_processor that puts a control token before a text; "
                "save the tokenizer again from the original model"
            )
        return template

    def encode(
        self,
        texts: Sequence[str],
        positions: Sequence[int],
        *,
        special_tokens: SpecialTokens = "literal",
    ) -> list[list[int]]:
        """The ids of each text, without a template and uncut.

        `positions` says which of the caller's pairs each text came from, for error messages.
        Raises `InvalidInputError` in mode `"error"` for a text that holds a control token.
        """
        tokenizer = self._literal if special_tokens == "literal" else self._parsing
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        if special_tokens == "parse":
            return ids
        for position, found in zip(positions, ids, strict=True):
            if not self.control_ids.isdisjoint(found):
                raise self._control_token_error(found, position, special_tokens)
        return ids

    def _control_token_error(
        self, ids: list[int], position: int, special_tokens: SpecialTokens
    ) -> Exception:
        token = next(i for i in ids if i in self.control_ids)
        name = self._parsing.id_to_token(token)
        if special_tokens == "error":
            return InvalidInputError(
                f"the pair at position {position} holds the control token {name!r}; remove it, or "
                "use special_tokens='literal' to score it as plain text",
                index=position,
            )
        return CheckpointError(
            f"this tokenizer turns plain text into the control token {name!r} and cannot be kept "
            "from it; use special_tokens='error' to refuse such texts"
        )


def join_pair(query: Sequence[int], passage: Sequence[int], template: Template) -> TokenSequence:
    """Template, query, template, passage, template: one sequence of ids."""
    first = (*template.before, *query, *template.between)
    ids = np.fromiter((*first, *passage, *template.after), dtype=np.int32)
    # BERT counts the separator after the query to the first segment and any other to the second
    segment = len(template.before) + len(query) + min(1, len(template.between))
    return TokenSequence(ids, segment)


def join_single(text: Sequence[int], template: Template) -> TokenSequence:
    """Template, text, template: one sequence of ids, all of the first segment."""
    ids = np.fromiter((*template.before, *text, *template.after), dtype=np.int32)
    return TokenSequence(ids, len(ids))


def _stateless(content: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _template(ids: Sequence[int], owners: Sequence[int | None]) -> Template:
    """Split a probe's ids at those that belong to a text: an owner of None is the template's."""
    texts = [position for position, owner in enumerate(owners) if owner is not None]
    starts = [
        position for position in texts if position == 0 or owners[position - 1] != owners[position]
    ]
    second = starts[1] if len(starts) > 1 else len(ids)
    first_end = max((p for p in texts if p < second), default=-1) + 1
    if len(starts) == 1:
        return Template(tuple(ids[: starts[0]]), (), tuple(ids[first_end:]))
    return Template(
        tuple(ids[: starts[0]]), tuple(ids[first_end:second]), tuple(ids[texts[-1] + 1 :])
    )


def _control_ids(content: Mapping[str, Any], declared: Iterable[int]) -> frozenset[int]:
    """Ids of every special token except "unknown", which ordinary text may give."""
    unknown = _unknown_token(content)
    special = {
        token["id"]: token["content"]
        for token in content.get("added_tokens", [])
        if token["special"]
    }
    ids = {number for number, name in special.items() if name != unknown}
    named = {number for number in declared if number not in special or special[number] != unknown}
    return frozenset(ids | named)


def _unknown_token(content: Mapping[str, Any]) -> str | None:
    model = content["model"]
    if model["type"] == "Unigram":
        number = model.get("unk_id")
        return None if number is None else str(model["vocab"][number][0])
    name = model.get("unk_token")
    return None if name is None else str(name)


def _without_control_pieces(content: dict[str, Any], control_ids: frozenset[int]) -> str:
    """The tokenizer with every control piece renamed to something that no text can hold.

    Ids stay as they are. "Unknown" goes from the added tokens, so that its name is text as well;
    the model still finds it by its number or its place in the vocabulary.
    """
    unknown = _unknown_token(content)
    content["added_tokens"] = [
        token for token in content.get("added_tokens", []) if token["content"] != unknown
    ]
    nonce = secrets.token_hex(16)
    model, names = content["model"], {}
    if model["type"] == "Unigram":
        numbers = set(control_ids) | (
            {model["unk_id"]} if model.get("unk_id") is not None else set()
        )
        for number in numbers:
            if number < len(model["vocab"]):
                name = model["vocab"][number][0]
                names[name] = model["vocab"][number][0] = f"{nonce}{number}"
    else:
        for name, number in list(model["vocab"].items()):
            if number in control_ids:
                del model["vocab"][name]
                names[name] = f"{nonce}{number}"
                model["vocab"][names[name]] = number
    for token in content["added_tokens"]:
        if token["content"] in names or token["id"] in control_ids:
            token["content"] = names.get(token["content"], f"{nonce}{token['id']}")
    return json.dumps(content, ensure_ascii=False)
