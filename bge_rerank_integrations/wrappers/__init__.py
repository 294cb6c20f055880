"""Scorers that wrap a scorer: windows over long passages, a score cache, and a draft."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bge_rerank_integrations.base.contract import CheckedPairs, like_input, read_pairs
from bge_rerank_integrations.base.deadline import off_main_thread
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import CountsTokens, FloatArray, Scale, Scorer


class ScorerWrapper(ABC):
    """A scorer around another one, with its name, its scale and its token counts."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._scorer!r})"

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

        Raises what the wrapped scorer raises, and the errors that the class describes.
        """
        read = read_pairs(pairs)
        if not read:
            return like_input(pairs, np.empty(0, dtype=np.float32))
        return like_input(pairs, off_main_thread(self._score, read))

    @abstractmethod
    def _score(self, pairs: CheckedPairs) -> FloatArray:
        """The scores of at least one pair, whose texts are checked."""
