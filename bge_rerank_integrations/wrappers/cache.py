"""A scorer that caches another scorer's scores, in memory or in a file that processes share.

A key is a hash of the scorer's name and both texts, so a store contains no text. Missing scores are
computed: losing a cache costs time and never changes a score.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Any, Protocol

import numpy as np

from bge_rerank_integrations.base.contract import (
    CheckedPairs,
    checked_scores,
    like_input,
    read_pairs,
)
from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.errors import InvalidInputError, ScoringFailed
from bge_rerank_integrations.options import whole_number
from bge_rerank_integrations.types import CountsTokens, FloatArray, Pair, Scale, Scorer

KEY_BYTES = 32


class ScoreStore(Protocol):
    """Stores float32 scores by key, for any number of threads.

    A store never fails a rerank: scores that it cannot read are missing, and those that it cannot
    write are dropped.
    """

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, float]:
        """The scores of the stored keys."""
        ...

    def put(self, scores: Mapping[bytes, float]) -> None: ...


class MemoryStore:
    """Scores in this process's memory, about 200 bytes a pair; the least recently used go first."""

    def __init__(self, *, max_pairs: int = 100_000) -> None:
        limit = whole_number(max_pairs)
        if limit is None or limit < 1:
            raise InvalidInputError(f"max_pairs is {max_pairs!r}; it must be a whole number from 1")
        self._max_pairs = limit
        self._scores: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        with self._lock:
            found = {key: self._scores[key] for key in keys if key in self._scores}
            for key in found:
                self._scores.move_to_end(key)
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        with self._lock:
            for key, score in scores.items():
                self._scores[key] = score
                self._scores.move_to_end(key)
            while len(self._scores) > self._max_pairs:
                self._scores.popitem(last=False)


class CachedScorer:
    """Scores each pair once, and returns the same float32 from the `store` afterwards.

    Name and scale are the scorer's own. Equal names mean equal scores, so one store may serve many
    scorers. Missing pairs are scored in one call, in the given order. If that fails
    (`ScoringFailed`), the scores that were computed are stored, and the error's `partial` contains
    them and the stored ones. A local scorer's name contains a hash of the model's files, which is
    computed at the first use and takes seconds for a large model.
    """

    def __init__(self, scorer: Scorer, store: ScoreStore) -> None:
        self._scorer = scorer
        self._store = store

    def __repr__(self) -> str:
        return f"CachedScorer({self._scorer!r}, {self._store!r})"

    @property
    def name(self) -> str:
        return self._scorer.name

    @property
    def scale(self) -> Scale:
        return self._scorer.scale

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The scorer's token counts; raises `InvalidInputError` if it cannot count tokens."""
        if not isinstance(self._scorer, CountsTokens):
            raise InvalidInputError(f"{self.name} cannot count tokens")
        return self._scorer.count_tokens(texts)

    def score(self, pairs: Iterable[Any]) -> FloatArray:
        """One raw score per pair, float32, in the given order; see `LocalScorer.score`.

        Raises what the scorer raises, and `ScorerContractError` or `NonFiniteScoreError` for wrong
        scores, which are not stored.
        """
        read = read_pairs(pairs)
        return like_input(pairs, self._score(read) if read else np.empty(0, dtype=np.float32))

    def _score(self, pairs: Sequence[Pair]) -> FloatArray:
        keys = pair_keys(self.name, pairs)
        known = dict(self._store.get(list(dict.fromkeys(keys))))
        note({"cached": sum(key in known for key in keys)})
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if missing:
            try:
                found = checked_scores(self._scorer, CheckedPairs(missing.values()))
            except InvalidInputError:
                # score all, so that the error names the position in the caller's list
                return checked_scores(self._scorer, pairs)
            except ScoringFailed as error:
                known |= self._stored(missing, error.partial)
                if known:
                    error.partial = _in_order(keys, known)
                raise
            known |= self._stored(missing, found)
        return _in_order(keys, known)

    def _stored(
        self, missing: Mapping[bytes, Pair], scores: FloatArray | None
    ) -> Mapping[bytes, float]:
        """Store the scores that are numbers, and return them by key."""
        if scores is None or np.shape(scores) != (len(missing),) or np.isinf(scores).any():
            return {}
        listed = np.asarray(scores, dtype=np.float32).tolist()
        found = {key: score for key, score in zip(missing, listed, strict=True) if not isnan(score)}
        if found:
            self._store.put(found)
        return found


def pair_keys(name: str, pairs: Sequence[Pair]) -> list[bytes]:
    """The key of each pair: BLAKE2b (RFC 7693) of name, query and passage, each with its length.

    The lengths distinguish ("ab", "c") from ("a", "bc").
    """
    prefixes: dict[str, Any] = {}  # the hash of name and query is computed once per query
    keys = []
    for query, passage in pairs:
        if query not in prefixes:
            start = _with_length(name) + _with_length(query)
            prefixes[query] = hashlib.blake2b(start, digest_size=KEY_BYTES)
        digest = prefixes[query].copy()
        digest.update(_with_length(passage))
        keys.append(digest.digest())
    return keys


def _with_length(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _in_order(keys: Sequence[bytes], known: Mapping[bytes, float]) -> FloatArray:
    return np.array([known.get(key, np.nan) for key in keys], dtype=np.float32)
