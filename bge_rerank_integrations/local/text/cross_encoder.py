"""Query and passage through the model together: one logit per pair, by FlagEmbedding's rule.

The rule, of `FlagReranker.compute_score` in FlagEmbedding 1.4: the query is cut to three quarters
of `max_length`, the passage to `max_length`, and then the passage alone until the pair fits. With
`truncation="longest_first"` it is that of sentence-transformers and of the tokenizers library
(`truncate_encodings`): the longer text is cut to the other's length, then both to the half.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.st_config import FolderSettings
from bge_rerank_integrations.local.text.head import NO_HEAD, Head
from bge_rerank_integrations.local.text.tokenizer import (
    Ids,
    TextTokenizer,
    TokenSequence,
    join_pair,
)
from bge_rerank_integrations.options import PairOptions
from bge_rerank_integrations.types import (
    FloatArray,
    Pair,
    PairLength,
    Scale,
    SpecialTokens,
    Truncation,
)

DEFAULT_MAX_LENGTH = 512
INSTRUCTIONS = ("query_instruction", "passage_instruction")
JOINING, MEASURING = "token ids were joined", "texts were measured"


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts become ids: lengths in tokens, instructions, control tokens, truncation."""

    max_length: int
    query_max_length: int
    query_instruction: str
    passage_instruction: str
    special_tokens: SpecialTokens
    truncation: Truncation = "only_second"

    @property
    def description(self) -> str:
        """The options that change a score, for `Scorer.name`."""
        parts: dict[str, object] = {"max_length": self.max_length}
        if self.truncation == "only_second":
            parts["query_max_length"] = self.query_max_length
        else:
            parts["truncation"] = self.truncation
        for name in INSTRUCTIONS:
            if text := getattr(self, name):
                parts[name] = repr(text)
        if self.special_tokens != "literal":
            parts["special_tokens"] = self.special_tokens
        return ",".join(f"{name}={value}" for name, value in parts.items())


def text_options(
    tokenizer: TextTokenizer,
    given: PairOptions,
    lengths: tuple[int, int],
    instructions: tuple[str, str],
    truncation: Truncation = "only_second",
) -> TextOptions:
    """The given options, with the model's `instructions` for those left out.

    `lengths` are those of a pair and of a query, `instructions` those of a query and of a passage.
    Raises `UnsupportedModel` for an instruction of the model that holds a control token, unless
    texts are parsed.
    """
    used = []
    for name, text in zip(INSTRUCTIONS, instructions, strict=True):
        own = getattr(given, name)
        used.append(text if own is None else own)
        if own is not None or given.special_tokens == "parse":
            continue
        if token := tokenizer.control_token_in(text):
            raise UnsupportedModel(
                f"the prompt {text!r} of the model's folder holds the control token {token!r}, "
                f"which special_tokens={given.special_tokens!r} does not read as one: use "
                f"special_tokens='parse', or give {name}"
            )
    query, passage = used
    return TextOptions(*lengths, query, passage, given.special_tokens, truncation)


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

    def __post_init__(self) -> None:
        for sequence, position in zip(self.sequences, self.positions, strict=True):
            if not len(sequence.ids):  # a decoder's tokenizer may put no control token
                raise InvalidInputError(
                    f"position {position} has no text, and this model has no score for no tokens",
                    index=position,
                )


@dataclass(frozen=True, slots=True)
class Method(ABC):
    """How a family of models turns distinct pairs into scores: encode, run the model, decode."""

    options: TextOptions

    @property
    def scale(self) -> Scale:
        return "logit"

    @property
    def columns(self) -> int:
        """How many layers give a score."""
        return 1

    @property
    @abstractmethod
    def description(self) -> str:
        """Everything that changes scores, as it appears in `Scorer.name`."""

    @abstractmethod
    def limits(self, query: int, passage: int, tokenizer: TextTokenizer) -> tuple[int, int]:
        """How many tokens are read of a query and a passage of these lengths, at most."""

    @abstractmethod
    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        """The pairs as the model's input; `positions` are their places in the caller's list."""

    @abstractmethod
    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:
        """Raw scores, [pairs, columns], from the model's rows, one for each sequence."""

    def measure(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> list[PairLength]:
        """The tokens of each pair, uncut, and how many of them `encode` would keep."""
        queries, passages = encode_both(tokenizer, pairs, positions, self.options, whole=True)
        lengths = [(len(queries[query]), len(passages[passage])) for query, passage in pairs]
        return [
            PairLength(query, limits[0], passage, limits[1])
            for query, passage in cancellable(lengths, MEASURING)
            for limits in [self.limits(query, passage, tokenizer)]
        ]

    def cut_by(self, query: Ids, passage: Ids, limits: tuple[int, int]) -> list[str]:
        """The option that cuts this pair; none where both texts fit."""
        if len(query) > limits[0] and self.options.truncation == "only_second":
            return ["query_max_length"]
        return ["max_length"] if len(query) > limits[0] or len(passage) > limits[1] else []


@dataclass(frozen=True, slots=True)
class JoinedPairs(Method):
    """A method that reads query and passage in one sequence."""

    @abstractmethod
    def join(self, query: Ids, passage: Ids, tokenizer: TextTokenizer) -> TokenSequence:
        """The model's input for a query and a passage that are cut already."""

    def encode(
        self, pairs: Sequence[Pair], positions: Sequence[int], tokenizer: TextTokenizer
    ) -> EncodedTexts:
        # only the full lengths show which of two long texts is longer
        whole = self.options.truncation == "longest_first"
        queries, passages = encode_both(tokenizer, pairs, positions, self.options, whole=whole)
        sequences: list[TokenSequence] = []
        cut: Counter[str] = Counter()
        for query_text, passage_text in cancellable(pairs, JOINING):
            query, passage = queries[query_text], passages[passage_text]
            limits = self.limits(len(query), len(passage), tokenizer)
            cut.update(self.cut_by(query, passage, limits))
            sequences.append(self.join(query[: limits[0]], passage[: limits[1]], tokenizer))
        return EncodedTexts(sequences, positions, cut)

    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:  # noqa: ARG002
        return rows


@dataclass(frozen=True, slots=True)
class CrossEncoding(JoinedPairs):
    """The method of one-logit classifiers."""

    head: Head = NO_HEAD

    @property
    def description(self) -> str:
        return self.options.description + self.head.description

    def limits(self, query: int, passage: int, tokenizer: TextTokenizer) -> tuple[int, int]:
        limit = self.options.query_max_length
        room = self.options.max_length - len(tokenizer.pair_template)
        if self.options.truncation == "only_second":
            return limit, room - min(query, limit)
        shorter = min(query, passage, room // 2)
        return (shorter, room - shorter) if query <= passage else (room - shorter, shorter)

    def join(self, query: Ids, passage: Ids, tokenizer: TextTokenizer) -> TokenSequence:
        return join_pair(query, passage, tokenizer.pair_template)

    def decode(self, rows: FloatArray, encoded: EncodedTexts) -> FloatArray:  # noqa: ARG002
        return self.head(rows)


def cross_encoding(
    tokenizer: TextTokenizer,
    text: PairOptions,
    settings: FolderSettings | None = None,
    *,
    limit: int,
) -> CrossEncoding:
    """The method, with the folder's or FlagEmbedding's default for each option left out.

    Raises `InvalidInputError`, with the allowed range, for a pair longer than the model's `limit`
    or a query that leaves no room for a passage.
    """
    control = len(tokenizer.pair_template)
    settings = settings or FolderSettings(Family.ENCODER)
    length, query = text.max_length, text.query_max_length
    if length is None:
        length = settings.default_length(limit, DEFAULT_MAX_LENGTH)
    check_length("max_length", length, text.max_length, least=4 * (control + 1), most=limit)
    # a limit of the query has a meaning by FlagEmbedding's rule alone
    saved = settings.is_saved_cross_encoder and query is None
    truncation = text.truncation or ("longest_first" if saved else "only_second")
    room = length - control - 1
    if query is None:
        query = room if truncation == "longest_first" else length * 3 // 4
    elif truncation == "longest_first":
        raise InvalidInputError(
            f"query_max_length is {query}; with truncation='longest_first' a query is cut only "
            "where it is the longer text: leave one of the two out"
        )
    if not 1 <= query <= room:
        raise InvalidInputError(
            f"query_max_length is {query}; with max_length={length} it must be 1 to {room}, so "
            "that a passage fits after the query"
        )
    prompts = settings.query_prompt, ""
    options = text_options(tokenizer, text, (length, query), prompts, truncation)
    return CrossEncoding(options, settings.head)


def check_length(name: str, length: int, given: int | None, *, least: int, most: int) -> None:
    """Raise `InvalidInputError` for a length that the model cannot take."""
    if not least <= length <= most:
        source = "" if given is not None else " by the model's folder"
        raise InvalidInputError(
            f"{name} is {length}{source}; this model takes {least} to {most} tokens"
        )


def encode_both(
    tokenizer: TextTokenizer,
    pairs: Sequence[Pair],
    positions: Sequence[int],
    options: TextOptions,
    *,
    whole: bool = False,
) -> tuple[dict[str, Ids], dict[str, Ids]]:
    """Each distinct query and each distinct passage with its ids, instructions put before them.

    Of a text longer than its part of `options.max_length` the last ids may be missing, unless the
    `whole` is wanted.
    """
    both = []
    for side, instruction, keep in (
        (0, options.query_instruction, options.query_max_length),
        (1, options.passage_instruction, options.max_length),
    ):
        first: dict[str, int] = {}
        for pair, position in zip(pairs, positions, strict=True):
            first.setdefault(pair[side], position)
        ids = tokenizer.encode(
            [instruction + text for text in first],
            list(first.values()),
            keep=None if whole else keep,
            special_tokens=options.special_tokens,
        )
        both.append(dict(zip(first, ids, strict=True)))
    return both[0], both[1]
