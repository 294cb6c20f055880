"""How a family of models makes scores: texts to sequences of ids, and rows to scores."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.types import (
    FloatArray,
    Pair,
    PairLength,
    Scale,
    SpecialTokens,
    Truncation,
)

RunSequences = Callable[[Sequence[TokenSequence], Sequence[int]], FloatArray]
"""Sequences, and the position of the pair that each came from, to one row per sequence."""


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


class Method(Protocol):
    """How a family of models turns distinct pairs into scores."""

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

    def score(
        self,
        pairs: Sequence[Pair],
        positions: Sequence[int],
        tokenizer: TextTokenizer,
        run: RunSequences,
    ) -> tuple[FloatArray, Counter[str]]:
        """Raw scores, [pairs, layers that score], and how many pairs each option cut."""
        ...

    def measure(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> list[PairLength]:
        """The tokens of each pair, uncut, and how many of them `score` would read."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A method that has a vector for each text, as embedders do."""

    def embed(
        self,
        texts: Sequence[str],
        tokenizer: TextTokenizer,
        run: RunSequences,
        *,
        as_queries: bool,
    ) -> FloatArray: ...
