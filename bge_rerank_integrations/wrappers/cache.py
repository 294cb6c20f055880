"""A scorer that caches another scorer's scores, in memory or in a file that processes share.

A key is a hash of the scorer's name and both texts, so a store contains no text. Missing scores are
computed: losing a cache costs time and never changes a score.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Protocol

import numpy as np

from bge_rerank_integrations.base.contract import CheckedPairs, checked_partial, checked_scores
from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.base.option_group import count_from
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.errors import InvalidInputError, ScoringFailed
from bge_rerank_integrations.types import FloatArray, Pair, Scorer
from bge_rerank_integrations.wrappers import ScorerWrapper

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
    """Scores in this process's memory, about 200 bytes per pair; drops the least recently used."""

    def __init__(self, *, max_pairs: int = 100_000) -> None:
        self._max_pairs = count_from(1, max_pairs, "max_pairs")
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


class CachedScorer(ScorerWrapper):
    """Scores each pair once, and returns the same float32 from the `store` afterwards.

    Name and scale are the scorer's own. Equal names mean equal scores, so one store may serve many
    scorers. Missing pairs are scored in one call, in the given order. If that fails
    (`ScoringFailed`), the scores that were computed are stored, and the error's `partial` contains
    them and the stored ones. Wrong scores raise `ScorerContractError` or `NonFiniteScoreError` and
    are not stored. A local scorer's name contains a hash of the model's files, which is computed at
    the first use and takes seconds for a large model.
    """

    def __init__(self, scorer: Scorer, store: ScoreStore) -> None:
        super().__init__(scorer)
        self._store = store

    def __repr__(self) -> str:
        return f"CachedScorer({self._scorer!r}, {self._store!r})"

    def _score(self, pairs: CheckedPairs) -> FloatArray:
        # a server's upgrade may change the scale behind the same name
        keys = pair_keys(f"{self.scale}:{self.name}", pairs)
        known = dict(self._store.get(list(dict.fromkeys(keys))))
        note({"cached": sum(key in known for key in keys)})
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if not missing:
            return _in_order(keys, known)
        failure = None
        try:
            scores = checked_scores(self._scorer, CheckedPairs(missing.values()))
        except InvalidInputError:
            # score all, so that the error names the position in the caller's list
            return checked_scores(self._scorer, pairs)
        except ScoringFailed as error:
            failure, scores = error, checked_partial(error, len(missing))
        listed = zip(missing, scores.tolist(), strict=True)
        if found := {key: score for key, score in listed if not isnan(score)}:
            self._store.put(found)
        if failure is not None:
            failure.partial = _in_order(keys, known | found) if known or found else None
            raise failure
        return _in_order(keys, known | found)


def pair_keys(name: str, pairs: Sequence[Pair]) -> list[bytes]:
    """The key of each pair: BLAKE2b (RFC 7693) of name, query and passage, each with its length.

    The lengths distinguish ("ab", "c") from ("a", "bc").
    """
    return [
        hashlib.blake2b(b"".join(map(_with_length, (name, *pair))), digest_size=KEY_BYTES).digest()
        for pair in cancellable(pairs, "scores were looked up")
    ]


def _with_length(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _in_order(keys: Sequence[bytes], known: Mapping[bytes, float]) -> FloatArray:
    return np.array([known.get(key, np.nan) for key in keys], dtype=np.float32)
