"""Scorers for passages that are too long: split them into windows, or refuse them.

A window is a part of the passage that fits into the model. The passage gets the score of its best
window, as in MaxP (Dai and Callan, "Deeper Text Understanding for IR with Contextual Neural
Language Modeling", SIGIR 2019).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from bge_rerank_integrations.base.contract import CheckedPairs, checked_scores, read_pairs
from bge_rerank_integrations.base.deadline import check_time
from bge_rerank_integrations.base.option_group import count_from
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.errors import InvalidInputError, ScoringFailed
from bge_rerank_integrations.types import FloatArray, MeasuresPairs, PairLength, Scorer
from bge_rerank_integrations.wrappers import ScorerWrapper

# Unicode's sentence terminators (UAX #29): some end a sentence only before a space.
_ENDS = regex.compile(r"[\p{Sentence_Break=STerm}\p{Sentence_Break=ATerm}…]")
_ENDED = regex.compile(
    r"(?<=[\p{Sentence_Break=STerm}--[!?]\uff1b])|(?<=\uff0e)(?![\p{N}\p{Latin}])", regex.V1
)
DEFAULT_OVERLAP = 64


class WindowedScorer(ScorerWrapper):
    """Splits a passage that is too long into overlapping windows, and returns the best score.

    A window has as many tokens as fit with the query, or up to a quarter less, so that it ends at
    the end of a sentence, or at least of a word. It repeats about `overlap` tokens of the previous
    window, at most half a window. Every token is in a window, and no window is truncated. All
    windows of a call are scored in one call. A passage that fits is scored as it is. A query that
    is too long is still truncated, with a warning.

    In `ScoringFailed.partial`, a passage has a score only if all of its windows have. Raises
    `InvalidInputError` for an overlap below 0, for a scorer that cannot measure pairs, such as one
    on a server, whose tokenizer is not available here, and in `score` for a passage with a
    character that has more tokens than fit with its query.
    """

    def __init__(self, scorer: Scorer, *, overlap: int = DEFAULT_OVERLAP) -> None:
        super().__init__(scorer)
        self._measuring = _measuring(scorer)
        self._overlap = count_from(0, overlap, "overlap", " of tokens")

    def __repr__(self) -> str:
        return f"WindowedScorer({self._scorer!r}, overlap={self._overlap})"

    @property
    def name(self) -> str:
        return f"{self._scorer.name}[windows,overlap={self._overlap}]"

    def _score(self, pairs: CheckedPairs) -> FloatArray:
        split = self.windows(pairs)
        first = np.cumsum([0, *map(len, split[:-1])])
        note({"windows": sum(len(windows) > 1 for windows in split)})
        try:
            scores = checked_scores(
                self._scorer,
                CheckedPairs(
                    (query, passage[start:end])
                    for (query, passage), windows in zip(pairs, split, strict=True)
                    for start, end in windows
                ),
            )
        except ScoringFailed as error:
            if error.partial is not None and len(error.partial) == sum(map(len, split)):
                error.partial = np.maximum.reduceat(error.partial, first)  # NaN stays NaN
            error.add_note("positions count windows; a long passage has several")
            raise
        return np.maximum.reduceat(scores, first)

    def windows(self, pairs: Iterable[Any]) -> list[list[tuple[int, int]]]:
        """The windows of each passage, as (start, end) in characters, in order.

        A passage that fits is one window.
        """
        read = read_pairs(pairs)
        found: list[list[tuple[int, int]]] = [[] for _ in read]
        pending = [_Piece(owner, 0, *pair) for owner, pair in enumerate(read)]
        # A piece may have another number of tokens than within its passage, so each is measured,
        # and split again if it does not fit.
        while pending:
            lengths = self._measuring.measure(
                CheckedPairs((piece.query, piece.text) for piece in pending)
            )
            long = []
            for piece, length in zip(pending, lengths, strict=True):
                if length.passage <= length.passage_limit:
                    found[piece.owner].append((piece.start, piece.start + len(piece.text)))
                else:
                    long.append((piece, length))
            offsets = self._measuring.token_offsets([piece.text for piece, _ in long])
            pending = []
            for (piece, length), spans in zip(long, offsets, strict=True):
                pending += piece.parts(length, spans, self._overlap)
        return [sorted(windows) for windows in found]


class UncutScorer(ScorerWrapper):
    """The same scorer, except that a pair it would truncate is an error.

    `measured_by` is the scorer whose limits apply, if `scorer` is a cache around it: the cache may
    hold scores of pairs that were truncated in other calls. Raises `InvalidInputError` if it cannot
    measure pairs, and in `score`, with position and number of tokens, for the first query or
    passage that is too long.
    """

    def __init__(self, scorer: Scorer, *, measured_by: Scorer | None = None) -> None:
        super().__init__(scorer)
        self._measuring = _measuring(scorer if measured_by is None else measured_by)

    def _score(self, pairs: CheckedPairs) -> FloatArray:
        for index, length in enumerate(self._measuring.measure(pairs)):
            problem = None
            if length.query > length.query_limit:
                problem = (
                    f"query of the pair at position {index} has {length.query} tokens, but only "
                    f"{length.query_limit} are read; shorten it, raise query_max_length, or use "
                    "long_passages='cut'"
                )
            elif length.passage > length.passage_limit:
                problem = (
                    f"passage at position {index} has {length.passage} tokens, but with its query "
                    f"only {length.passage_limit} are read; split it, raise max_length, or use "
                    "long_passages='windows' or 'cut'"
                )
            if problem is not None:
                raise InvalidInputError(f"the {problem}", index=index)
        return checked_scores(self._scorer, pairs)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of the passage at position `owner`, starting at character `start`."""

    owner: int
    start: int
    query: str
    text: str

    def parts(self, length: PairLength, offsets: NDArray[np.int64], overlap: int) -> list["_Piece"]:
        """Shorter pieces that together contain every token of this one."""
        room = length.passage_limit - (length.passage - len(offsets))  # less the instruction's
        spans = plan_windows(self.text, offsets, room, overlap)
        if not spans or any(end - start >= len(self.text) for start, end in spans):
            raise InvalidInputError(
                f"the passage at position {self.owner} has a character with more tokens than fit "
                f"with its query: {length.passage_limit}; shorten the query, or raise max_length",
                index=self.owner,
            )
        worded = [span for span in (_stripped(self.text, *span) for span in spans) if span]
        return [
            _Piece(self.owner, self.start + start, self.query, self.text[start:end])
            for start, end in worded or spans[:1]
        ]


def plan_windows(
    text: str, offsets: NDArray[np.int64], room: int, overlap: int
) -> list[tuple[int, int]]:
    """(start, end) in characters of windows with at most `room` tokens, covering all tokens.

    `offsets` are start and end of each token. Empty if a character has more than `room` tokens.
    """
    starts = offsets[:, 0].tolist()
    ends = np.maximum.accumulate(offsets[:, 1]).tolist()
    number, overlap = len(starts), min(overlap, room // 4)

    @cache
    def rank(place: int) -> int:
        """0 to 2 for a place between tokens where the text may be split, -1 within a character."""
        if place >= number:
            return 2 if place == number else -1
        end, start = ends[place - 1], starts[place]
        return _rank(text, end, start) if start >= end else -1

    windows: list[tuple[int, int]] = []
    begin = done = 0
    while done < number:
        check_time("passages were divided into windows")
        end = _best_cut(rank, max(done, begin + room * 3 // 4), begin + room)
        end = end or _best_cut(rank, done, begin + room, anywhere=True)
        if end is None and begin < done:
            begin = done  # a character with many tokens follows: drop the overlap
            continue
        if end is None:
            return []
        # up to the next token: a tokenizer that rewrites text may place a token's end too early
        windows.append((starts[begin], starts[end] if end < number else len(text)))
        begin, done = _best_cut(rank, max(begin, end - 2 * overlap), end - overlap) or end, end
    return windows


def _best_cut(
    rank: Callable[[int], int], above: int, last: int, *, anywhere: bool = False
) -> int | None:
    """The last place of the highest rank in (above, last]; None if there is none."""
    places = (place for place in range(last, above, -1) if rank(place) >= 0)
    return next(places, None) if anywhere else max(places, key=rank, default=None)


def _rank(text: str, end: int, start: int) -> int:
    """How good a place to split is: 2 after a sentence, 1 between words, 0 within a word."""
    last, gap = text[max(0, end - 1) : end], text[end:start] + text[start : start + 1]
    word_ends = start > end or last.isspace() or gap[:1].isspace()
    if (
        _ENDED.match(text, end)
        or "\n" in last + gap
        or (word_ends and _ENDS.match(text[max(0, end - 8) : end].rstrip()[-1:]))
    ):
        return 2
    return int(word_ends)


def _stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without white space at its ends; None if nothing is left."""
    part = text[start:end].lstrip()
    return (end - len(part), end - len(part) + len(part.rstrip())) if part else None


def _measuring(scorer: Scorer) -> MeasuresPairs:
    if not isinstance(scorer, MeasuresPairs):
        raise InvalidInputError(
            f"{scorer.name} cannot say how many tokens a passage has: the tokenizer of a server is "
            "not available here, and a cache must wrap the windows; use long_passages='cut', or "
            "split the passages before they are indexed"
        )
    return scorer
