"""The types that the whole package shares: pair, scale, scorer, result.

`Scorer` is the central interface. Local models, servers and ONNX graphs implement it, and so do the
wrappers around another scorer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pair = tuple[str, str]
"""(query, passage)"""

Scale = Literal["logit", "cosine", "probability"]
"""Kind of a raw score: an unbounded log-odds, a cosine in [-1, 1], or a probability in [0, 1]."""

Precision = Literal["auto", "fp32", "fp16", "bf16", "fp16-autocast", "bf16-autocast"]
"""The number format asked for; `-autocast` keeps the weights in float32."""

CudaAttention = Literal["padded", "varlen", "efficient"]
"""The attention on CUDA: the default, or one of torch's kernels for texts of different lengths."""

Backend = Literal["auto", "torch", "onnx", "openvino"]
"""The runtime: torch from safetensors, or ONNX Runtime or OpenVINO from an ONNX graph."""

GraphFormat = Literal["fp32", "int8"]
"""The number format of an exported graph's matrices."""

SpecialTokens = Literal["literal", "error", "parse"]
"""How a control token's name in a text is read: as text, as an error, or as the token itself."""

Truncation = Literal["only_second", "longest_first"]
"""Which text of a pair that is too long is cut: the passage, or whichever text is longer."""

HeadIndexing = Literal["request", "layer"]
"""Which head a layer of the lightweight model uses: by its place in the request, or its own."""

OnError = Literal["raise", "keep"]
"""How a rerank handles missing scores: raise, or keep the retrieval order for the rest."""

LongPassages = Literal["cut", "windows", "error"]
"""How a passage that is too long is read: cut, in overlapping windows, or refused."""

FloatArray = NDArray[np.float32]


@runtime_checkable
class Scorer(Protocol):
    """Turns (query, passage) pairs into raw scores, one float32 per pair, in the same order.

    Every scorer obeys these laws, which the contract tests check: scores are finite; no pairs give
    no scores; a pair's score depends neither on its neighbours nor on its position; any number of
    threads may call `score` at once.
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
    """A scorer that can say how many tokens its model makes of a text."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class PairLength:
    """How many tokens query and passage have, and how many of each the model would read."""

    query: int
    query_limit: int
    passage: int
    passage_limit: int


@runtime_checkable
class MeasuresPairs(CountsTokens, Protocol):
    """A scorer that can say where the tokens of a pair lie and how many are too many."""

    def measure(self, pairs: Sequence[Pair]) -> list[PairLength]:
        """Instructions that are put before a text count as part of it."""
        ...

    def token_offsets(self, passages: Sequence[str]) -> list[NDArray[np.int64]]:
        """Start and end of each token in the characters of its passage, [tokens, 2].

        Tokens of an instruction are left out.
        """
        ...


@runtime_checkable
class ScoresBest(Protocol):
    """A scorer that can score the best pairs alone; see `wrappers.draft.DraftedScorer`."""

    def score_best(
        self, pairs: Any, *, limit: int | None, is_kept: Callable[[float], bool]
    ) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """The sentence of a passage that answers best: `text`, which is `passage[start:end]`.

    `score` and `raw_score` are the sentence's own, on the scales of a `RerankResult`.
    """

    start: int
    end: int
    score: float
    raw_score: float
    text: str


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One passage's place in a ranking.

    `index` is the passage's position in the caller's list, `score` the score on the scale that was
    asked for, `raw_score` the scorer's own number (a logit or a cosine), which decided the order.
    Both are NaN where `scored` is False: scoring failed, and the caller's order was kept instead.
    `evidence` is None unless it was asked for with `explain` and found. `passage` is the caller's
    text; it is not part of the repr, which logs may show, and does not count in comparisons.
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
