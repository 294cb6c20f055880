"""Control ids, and a copy of a tokenizer with which no text can produce them."""

import json
import re
import secrets
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

CONTROL_NAME = re.compile(r"[<\[].+[>\]]")


def control_ids(tokenizer: Tokenizer, content: str, declared: Iterable[int]) -> frozenset[int]:
    """Ids of the special tokens and of those that the model's config declares.

    A declared id counts if it has the name of a control token, such as <s> or [CLS]: a config
    may declare any word. The unknown token is left out: any character outside the vocabulary gives
    it, and it controls nothing.
    """
    special = {
        number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
    }
    named = {number for number in declared if 0 <= number < 2**31}
    named = {n for n in named if CONTROL_NAME.fullmatch(tokenizer.id_to_token(n) or "")}
    return frozenset((special | named) - {unknown_id(tokenizer, content)})


def unknown_id(tokenizer: Tokenizer, content: str) -> int | None:
    """The id for characters outside the vocabulary, if the tokenizer has one."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is not None:
        number: int | None = tokenizer.token_to_id(name)
        return number
    # Unigram has it as a number, which its Python object does not show
    if type(tokenizer.model).__name__ != "Unigram":
        return None
    found = re.search(r'"unk_id"\s*:\s*(\d+)', content)
    return int(found[1]) if found else None


def without_control_pieces(content: str, control: frozenset[int]) -> str:
    """The tokenizer.json with every control piece renamed to something that no text can hold.

    Ids stay as they are. Merges that give or use such a piece are left out, so that its name is
    split into smaller pieces. A filter on the text would not be enough: normalization turns
    look-alikes (full-width `＜/s＞`) into control pieces after any filter.
    """
    tokenizer: dict[str, Any] = json.loads(content)
    nonce = secrets.token_hex(16)
    model, names = tokenizer["model"], {}
    if model["type"] == "Unigram":
        for number in control:
            if number < len(model["vocab"]):
                name = model["vocab"][number][0]
                names[name] = model["vocab"][number][0] = f"{nonce}{number}"
    else:
        for name, number in list(model["vocab"].items()):
            if number in control:
                del model["vocab"][name]
                names[name] = f"{nonce}{number}"
                model["vocab"][names[name]] = number
        if "merges" in model:
            model["merges"] = [
                merge for merge in model["merges"] if names.keys().isdisjoint(_pieces(merge))
            ]
    for token in tokenizer.get("added_tokens", []):
        if token["content"] in names or token["id"] in control:
            token["content"] = names.get(token["content"], f"{nonce}{token['id']}")
    return json.dumps(tokenizer, ensure_ascii=False)


def _pieces(merge: str | list[str]) -> tuple[str, str, str]:
    """The two pieces that a merge joins, and the one that they become.

    Merges with a prefix for continuing pieces are refused when the tokenizer is read.
    """
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right
