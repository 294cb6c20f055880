"""How a model family makes scores: texts to sequences of ids, and the model's rows to scores."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.types import (
    FloatArray,
    Pair,
    PairLength,
    Scale,
    SpecialTokens,
    Truncation,
)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts become ids: lengths in tokens, texts put before, control tokens."""

    max_length: int
    query_max_length: int
    query_instruction: str
    passage_instruction: str
    special_tokens: SpecialTokens
    truncation: Truncation = "only_second"


def cut_at(options: TextOptions, *, query: bool, passage: bool) -> list[str]:
    """The option that cut a pair, for a query or passage that lost something; or none."""
    if query and options.truncation == "only_second":
        return ["query_max_length"]
    return ["max_length"] if query or passage else []


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts as a model's input.

    `positions` has the caller's pair that each sequence came from, for error messages; `cut` counts
    the pairs that each option cut. `rows`, for methods that read query and passage apart, has the
    sequence of each pair's query and of its passage: [pairs, 2].
    """

    sequences: Sequence[TokenSequence]
    positions: Sequence[int]
    cut: Counter[str] = field(default_factory=Counter)
    rows: NDArray[np.intp] = field(default_factory=lambda: np.empty((0, 2), np.intp))


class Method(Protocol):
    """How a family of models turns distinct pairs into scores: encode, run the model, decode."""

    @property
    def options(self) -> TextOptions: ...

    @property
    def scale(self) -> Scale: ...

    @property
    def columns(self) -> int:
        """How many layers give a score."""
        ...

    @property
    def description(self) -> str:
        """Everything that changes scores, as it appears in `Scorer.name`."""
        ...

    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        """The pairs as the model's input; `positions` are their places in the caller's list."""
        ...

    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:
        """Raw scores, [pairs, columns], from the model's rows, one for each sequence."""
        ...

    def measure(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> list[PairLength]:
        """The tokens of each pair, uncut, and how many of them `encode` would keep."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A method that has a vector for each text, as embedders do."""

    def encode_texts(
        self, texts: Sequence[str], tokenizer: TextTokenizer, *, as_queries: bool
    ) -> EncodedTexts: ...

    def vectors(self, rows: FloatArray) -> FloatArray:
        """The vectors of the rows, [texts, width], of length 1."""
        ...
