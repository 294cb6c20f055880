"""The three ways to hand pairs to a scorer, read into one and checked.

Tuples, `{"query":, "passage":}` mappings and a pandas DataFrame with those columns. pandas is
never imported: a DataFrame is recognised by what it can do.
"""

from collections.abc import Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import FloatArray, Pair

COLUMNS = ("query", "passage")


def read_pairs(pairs: Iterable[Any]) -> list[Pair]:
    """Return the pairs as (query, passage) tuples of text.

    Lone surrogates, which no tokenizer accepts, become U+FFFD. Raises `InvalidInputError` with
    the position of the first item that is not a pair of strings.
    """
    if _is_frame(pairs):
        frame = cast(Any, pairs)
        columns = list(frame.columns)
        for column in COLUMNS:
            if columns.count(column) != 1:
                number = f"{columns.count(column)} columns" if column in columns else "no column"
                raise InvalidInputError(
                    f"the DataFrame has {number} {column!r}; it needs one {COLUMNS[0]!r} and one "
                    f"{COLUMNS[1]!r}, and has {list(map(str, columns))}"
                )
        pairs = zip(frame[COLUMNS[0]], frame[COLUMNS[1]], strict=True)
    return [
        _read_pair(pair, index)
        for index, pair in enumerate(check_several(pairs, "pairs", "[(query, passage), ...]"))
    ]


def check_several(things: object, what: str, remedy: str) -> Iterable[Any]:
    """Return `things` if they are several in an order that is the caller's own.

    Raises `InvalidInputError`, with the `remedy`, for a str, for what gives its keys or columns
    in place of its values, and for a set.
    """
    problem = None
    if isinstance(things, str | bytes | Mapping) or not isinstance(things, Iterable):
        problem = f"{what} is one {type(things).__name__}"
    elif hasattr(things, "columns"):
        problem = f"{what} is a table, a {type(things).__name__}, which gives its columns"
    elif isinstance(things, AbstractSet) and not isinstance(things, KeysView):
        problem = f"{what} is a {type(things).__name__}, which has no order to count positions in"
    if problem is not None:
        raise InvalidInputError(f"{problem}; pass a list: {remedy}")
    return cast(Iterable[Any], things)


def like_input(pairs: Iterable[Any], scores: FloatArray) -> FloatArray:
    """The scores as they are, or for a DataFrame as a Series with its index."""
    if not _is_frame(pairs):
        return scores
    frame = cast(Any, pairs)
    series = frame[COLUMNS[0]].astype(object).copy()
    return cast(FloatArray, type(series)(scores, index=frame.index, name="score"))


def check_text(text: object, what: str, index: int | None = None) -> str:
    """Return `text` as a tokenizer can take it; raises `InvalidInputError` for anything but str."""
    text = check_str(text, what, index)
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_str(text: object, what: str, index: int | None = None) -> str:
    """Return `text` as it is; raises `InvalidInputError` for anything but str."""
    if not isinstance(text, str):
        where = "" if index is None else f" at position {index}"
        raise InvalidInputError(
            f"the {what}{where} is {type(text).__name__}, not str; "
            "convert or drop it before scoring",
            index=index,
        )
    return text


def _read_pair(pair: Any, index: int) -> Pair:
    if isinstance(pair, Mapping):
        missing = [column for column in COLUMNS if column not in pair]
        if missing:
            raise InvalidInputError(
                f"the pair at position {index} has no key {missing[0]!r}; "
                'it needs {"query": ..., "passage": ...}',
                index=index,
            )
        query, passage = pair[COLUMNS[0]], pair[COLUMNS[1]]
    elif isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == 2:
        query, passage = pair
    else:
        raise InvalidInputError(
            f"the item at position {index} is {type(pair).__name__}, not a (query, passage) pair",
            index=index,
        )
    return check_text(query, "query", index), check_text(passage, "passage", index)


def _is_frame(pairs: object) -> bool:
    return hasattr(pairs, "columns") and hasattr(pairs, "iloc")
