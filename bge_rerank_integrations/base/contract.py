"""The contract of a scorer: pairs of text in, one finite raw score for each out.

Pairs come as tuples, as `{"query":, "passage":}` mappings or as a pandas DataFrame with those
columns. pandas is never imported: a DataFrame is recognised by its attributes.
"""

import math
from collections.abc import Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from inspect import getattr_static
from typing import Any, cast

import numpy as np
import regex

from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    ScorerContractError,
    ScoringFailed,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scale, Scorer

COLUMNS = ("query", "passage")


class CheckedPairs(list[Pair]):
    """Pairs whose texts have been checked; scorers that wrap scorers pass them on unchanged."""


def read_pairs(pairs: Iterable[Any]) -> CheckedPairs:
    """Return the pairs as (query, passage) tuples of text; `CheckedPairs` as they are.

    Lone surrogates, which no tokenizer accepts, become U+FFFD. Raises `InvalidInputError` with
    the position of the first item that is not a pair of strings.
    """
    if isinstance(pairs, CheckedPairs):
        return pairs
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
    several = cancellable(check_several(pairs, "pairs", "[(query, passage), ...]"))
    return CheckedPairs([_read_pair(pair, index) for index, pair in enumerate(several)])


def check_several(things: object, what: str, remedy: str) -> Iterable[Any]:
    """Return `things` if they are several values in an order that the caller chose.

    Raises `InvalidInputError`, with the `remedy`, for a str, for a mapping or table, which iterates
    over its keys or columns, and for a set.
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
    return without_surrogates(check_str(text, what, index))


def without_surrogates(text: str) -> str:
    """The same text, or a copy in which pairs of surrogates are joined and lone ones U+FFFD."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def check_str(text: object, what: str, index: int | None = None) -> str:
    """Return `text` as it is; raises `InvalidInputError` for anything but str."""
    if not isinstance(text, str):
        where = "" if index is None else f" at position {index}"
        own = [name for name in ("page_content", "text") if getattr_static(text, name, None)]
        remedy = f"pass its .{own[0]}" if own else "convert or drop it before scoring"
        raise InvalidInputError(
            f"the {what}{where} is {type(text).__name__}, not str; {remedy}", index=index
        )
    return text


# controls, spaces, and characters that no font draws: fillers, selectors, joiners
_BLANK = regex.compile(r"[\p{Cc}\p{Cf}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]*")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: only spaces, controls and characters that no font draws."""
    return not "!" <= text[:1] <= "~" and _BLANK.fullmatch(text) is not None


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
    elif (
        (isinstance(pair, Sequence) or getattr(pair, "ndim", 0) == 1)  # a row of numpy or pandas
        and not isinstance(pair, str | bytes)
        and len(pair) == 2
    ):
        query, passage = pair
    else:
        raise InvalidInputError(
            f"the item at position {index} is {type(pair).__name__}, not a (query, passage) pair; "
            "a single pair goes into a list too: [(query, passage)]",
            index=index,
        )
    return check_text(query, "query", index), check_text(passage, "passage", index)


def _is_frame(pairs: object) -> bool:
    return hasattr(pairs, "columns") and hasattr(pairs, "iloc")


def check_scorer(given: object, what: str) -> None:
    """Raise `InvalidInputError` unless it has a `Scorer`'s attributes, which are not evaluated.

    A remote scorer would ask its server for the scale, and a local one hash its files for the name.
    """
    if any(getattr_static(given, part, None) is None for part in ("name", "scale", "score")):
        raise InvalidInputError(
            f"{what} is a {type(given).__name__}; it must have name, scale and score(pairs), like "
            "the result of load_scorer"
        )


def checked_scores(scorer: Scorer, pairs: Sequence[Pair]) -> FloatArray:
    """The scorer's raw scores; see `check_scores`."""
    return check_scores(scorer.score(pairs), scorer, len(pairs))


def check_scores(scores: object, scorer: Scorer, pairs: int) -> FloatArray:
    """Return the scores of this many pairs as float32.

    Raises `ScorerContractError` or `NonFiniteScoreError` unless each pair has one finite number.
    """
    raw = np.asarray(scores, dtype=np.float32)
    if raw.shape != (pairs,):
        raise ScorerContractError(
            f"{scorer.name} gave scores of shape {raw.shape} for {pairs} pairs"
        )
    if not np.isfinite(raw).all():
        index = int(np.flatnonzero(~np.isfinite(raw))[0])
        raise NonFiniteScoreError(
            f"{scorer.name} gave {raw[index]} for the pair at position {index}"
        )
    return raw


def checked_partial(error: ScoringFailed, pairs: int) -> FloatArray:
    """The failure's partial scores, NaN where a pair was not scored.

    Raises `ScorerContractError` for partial scores of another shape, or infinite ones.
    """
    partial = error.partial
    if partial is None:
        return np.full(pairs, np.nan, dtype=np.float32)
    partial = np.asarray(partial, dtype=np.float32)
    if partial.shape != (pairs,) or np.isinf(partial).any():
        raise ScorerContractError(
            f"a {type(error).__name__} held partial scores of shape {partial.shape} for {pairs} "
            "pairs, or infinite ones"
        ) from error
    return partial


def show_score(raw_score: float, scale: Scale, *, normalize: bool) -> float:
    """A logit's sigmoid in double precision if `normalize`; anything else unchanged."""
    if scale != "logit" or not normalize:
        return raw_score
    # exp of a large positive number overflows, so each sign takes the form that does not
    if raw_score >= 0:
        return 1.0 / (1.0 + math.exp(-raw_score))
    odds = math.exp(raw_score)
    return odds / (1.0 + odds)
