"""The types that the whole package shares: pair, scale, scorer, result.

`Scorer` is the central interface. Local models, servers and ONNX graphs implement it, and so do
wrappers around other scorers.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pair = tuple[str, str]
"""(query, passage)"""

Scale = Literal["logit", "cosine", "probability"]
"""Kind of a raw score: unbounded log-odds, a cosine in [-1, 1], or a probability in [0, 1]."""

Precision = Literal["auto", "fp32", "fp16", "bf16", "fp16-autocast", "bf16-autocast"]
"""The requested number format; `-autocast` keeps the weights in float32."""

CudaAttention = Literal["padded", "varlen", "efficient"]
"""The attention on CUDA: the default, or one of torch's kernels for texts of different lengths."""

Backend = Literal["auto", "torch", "onnx", "openvino"]
"""The runtime: torch from safetensors, or ONNX Runtime or OpenVINO from an ONNX graph."""

GraphFormat = Literal["fp32", "int8"]
"""The number format of an exported graph's matrices."""

SpecialTokens = Literal["literal", "error", "parse"]
"""How a control token such as `</s>` in a text is read: as text, as an error, or as the token."""

Truncation = Literal["only_second", "longest_first"]
"""Which text is cut if a pair is too long: the passage, or whichever text is longer."""

HeadIndexing = Literal["request", "layer"]
"""How the lightweight model picks a layer's head: by position in the request, or by layer."""

OnError = Literal["raise", "keep"]
"""How a rerank handles missing scores: raise, or keep the caller's order for unscored passages."""

LongPassages = Literal["cut", "windows", "error"]
"""How a passage that is too long is read: cut, in overlapping windows, or refused."""

FloatArray = NDArray[np.float32]


@runtime_checkable
class Scorer(Protocol):
    """Turns (query, passage) pairs into raw scores, one float32 per pair, in the same order.

    Every scorer obeys these laws, which the contract tests check: scores are finite; an empty list
    of pairs gives an empty array; a pair's score depends neither on the other pairs nor on its
    position; any number of threads may call `score` at once.
    """

    @property
    def name(self) -> str:
        """Scorers with the same name give the same scores, so the name can be a cache key."""
        ...

    @property
    def scale(self) -> Scale: ...

    def score(self, pairs: Sequence[Pair]) -> FloatArray: ...


@runtime_checkable
class CountsTokens(Protocol):
    """A scorer that can count the tokens of a text with its model's tokenizer."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class PairLength:
    """Token counts of a query and a passage, and how many tokens of each the model would read."""

    query: int
    query_limit: int
    passage: int
    passage_limit: int


@runtime_checkable
class MeasuresPairs(CountsTokens, Protocol):
    """A scorer that can locate the tokens of a pair and knows how many its model reads."""

    def measure(self, pairs: Sequence[Pair]) -> list[PairLength]:
        """The lengths of each pair; an instruction before a text counts as part of it."""
        ...

    def token_offsets(self, passages: Sequence[str]) -> list[NDArray[np.int64]]:
        """Start and end of each token in its passage, in characters: one [tokens, 2] per passage.

        Tokens of an instruction are left out.
        """
        ...


@runtime_checkable
class ScoresBest(Protocol):
    """A scorer that can compute exact scores for the best pairs only; see `DraftedScorer`."""

    def score_best(
        self, pairs: Any, *, limit: int | None, is_kept: Callable[[float], bool]
    ) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """The sentence of a passage that answers the query best: `text`, which is `passage[start:end]`.

    `score` and `raw_score` are the sentence's own, on the same scales as in a `RerankResult`.
    """

    start: int
    end: int
    score: float
    raw_score: float
    text: str


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One passage in a ranking.

    `index` is the passage's position in the caller's list, `score` the score on the requested
    scale, and `raw_score` the scorer's own number (a logit or a cosine), which decides the order.
    Both are NaN if `scored` is False: scoring failed, and the caller's order was kept instead.
    `evidence` is None unless `explain` is on and a sentence was found. `passage` is the caller's
    text; it is left out of comparisons and of the repr, which logs may show.
    """

    index: int
    score: float
    raw_score: float
    scored: bool = True
    evidence: Evidence | None = None
    passage: str | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The result and its evidence as dictionaries for `json.dumps`, with None for NaN."""
        found = asdict(self)
        return found if self.scored else {**found, "score": None, "raw_score": None}
