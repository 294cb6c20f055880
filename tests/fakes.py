"""Scorers whose scores a reader can check by eye, for the tests of everything around a scorer."""

import threading
from collections.abc import Sequence

import numpy as np

from bge_rerank_integrations.errors import ScoringFailed, ScoringTimeout
from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.types import FloatArray, Pair, Scale


class WordOverlapScorer:
    """Scores a pair by how many different words of the query its passage has.

    `WordOverlapScorer().score([("red fox", "a red red fox"), ("red fox", "a dog")])` is
    `[2.0, 0.0]`. Words are split at white space, in lower case, without `.,:;!?`.
    """

    scale: Scale = "logit"

    def __init__(self, name: str = "word-overlap") -> None:
        self.name = name
        self.calls = 0
        self.pairs_scored = 0
        self.asked: list[list[Pair]] = []
        self._lock = threading.Lock()

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        with self._lock:
            self.calls += 1
            self.pairs_scored += len(pairs)
            self.asked.append(list(pairs))
        return np.array(
            [len(_words(query) & _words(passage)) for query, passage in pairs], dtype=np.float32
        )


class FailingScorer(WordOverlapScorer):
    """Scores the first `scored` pairs by word overlap, then fails: `error` with what there is."""

    def __init__(self, error: type[ScoringFailed] = ScoringTimeout, *, scored: int = 0) -> None:
        super().__init__("failing")
        self.error = error
        self.scored = scored

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        partial = super().score(pairs)
        partial[self.scored :] = np.nan
        raise self.error("the server is down", partial=partial if self.scored else None)


class BrokenScorer(WordOverlapScorer):
    """Raises what no scorer should."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        raise RuntimeError("the device is gone")


class NanScorer(WordOverlapScorer):
    """Word overlap, and NaN for the second pair."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        scores = super().score(pairs)
        scores[1] = np.nan
        return scores


class ShortScorer(WordOverlapScorer):
    """A score too few."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return super().score(pairs)[:-1]


class CosineScorer(WordOverlapScorer):
    """A quarter of the word overlap, called a cosine."""

    scale: Scale = "cosine"

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return super().score(pairs) / np.float32(4)


class StatedScorer:
    """A passage's score is the number that its text ends with: "a fox, 2.5" scores 2.5."""

    def __init__(self, scale: Scale = "logit", name: str = "stated") -> None:
        self.scale = scale
        self.name = name
        self.asked: list[list[Pair]] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.asked.append(list(pairs))
        return np.array([float(passage.split()[-1]) for _, passage in pairs], dtype=np.float32)


class LengthScorer:
    """The number of characters of each passage."""

    name = "length"
    scale: Scale = "logit"

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.array([len(passage) for _, passage in pairs], dtype=np.float32)


def _words(text: str) -> set[str]:
    return {word.strip(".,:;!?") for word in text.lower().split()} - {""}


def plain_calibration(relevant: Sequence[float] = (1.0,)) -> Calibration:
    """The probability is the sigmoid itself; each relevant passage is of another query."""
    return Calibration(
        scorer="word-overlap",
        slope=1.0,
        rank_slope=0.0,
        intercept=0.0,
        relevant_scores=tuple((score,) for score in relevant),
        percentiles=tuple(np.linspace(-10, 10, 101).tolist()),
        pairs=100,
        bins=(),
        error=0.0,
        floor=0.0,
        top_error=0.0,
        top_floor=0.0,
        top_bias=0.0,
        made="2026-01-01",
    )
