"""The programme: its parts by name, with contenders, models and texts. Data alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.adapter_peers import LANGCHAIN, LLAMA_INDEX
from benchmarks.peers import (
    FASTEMBED,
    FLAG,
    FLAG_LLM,
    FLAG_LLM_BF16,
    OPENVINO,
    ORT,
    OURS,
    OURS_BF16,
    PEERS,
    REFERENCE,
    ST_ONNX,
)
from benchmarks.workloads import EqualPairs, Passages

EVERYONE = PEERS | LLAMA_INDEX | LANGCHAIN


@dataclass(frozen=True, slots=True)
class Race:
    """Contenders in turns on each of the texts; the first is the one they are measured by.

    `seconds` are shared out to the contenders' turns, of which each has at least one on each of
    the texts. `axis` is what a curve through the texts shows.
    """

    model: str
    peers: Sequence[str]
    texts: Sequence[Passages | EqualPairs]
    seconds: float = 60
    most_turns: int = 5
    axis: Literal["passages", "tokens"] | None = None


@dataclass(frozen=True, slots=True)
class Callers:
    """Requests of ten passages from so many callers at once, so many from each in a turn."""

    model: str
    peers: Sequence[str]
    callers: Sequence[int] = (4, 16)
    requests: int = 4
    seconds: float = 60


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Fresh processes, from starting Python to the first score."""

    model: str
    peers: Sequence[str]
    starts: int = 3


@dataclass(frozen=True, slots=True)
class Overhead:
    """Our adapters against the scorer inside them, in one process."""

    model: str
    passages: Passages
    rounds: int = 5


Task = Race | Callers | ColdStart | Overhead


@dataclass(frozen=True, slots=True)
class Part:
    """What `--only` names: a title for readers, and what is to be done."""

    title: str
    tasks: Sequence[Task]
    on_request: bool = False

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(task.model for task in self.tasks))


RUNTIMES = (ORT, OPENVINO, FASTEMBED)
LIBRARIES = (OURS, OURS_BF16, REFERENCE, FLAG, "transformers", *RUNTIMES, "rerankers")
FEW = (OURS, OURS_BF16, REFERENCE, FLAG)
THREE = (OURS, OURS_BF16, REFERENCE)
LLMS = (OURS, OURS_BF16, FLAG_LLM, FLAG_LLM_BF16)

PARTS = {
    "marco": Part(
        "bge-reranker-base's shape, short passages",
        [Race("base", LIBRARIES, [Passages(100, 80)], seconds=165)],
    ),
    "rag": Part(
        "bge-reranker-base's shape, longer passages",
        [Race("base", FEW, [Passages(30, 260, 0.2)], seconds=80)],
    ),
    "large": Part("bge-reranker-large's shape", [Race("large", FEW, [Passages(20, 80)])]),
    "v2-m3": Part(
        "bge-reranker-v2-m3's shape, which is large's with room for 8192 tokens",
        [Race("v2-m3", THREE, [Passages(20, 80)])],
    ),
    "mini": Part(
        "all-MiniLM-L6-v2, real weights under a random head",
        [Race("mini", (*LIBRARIES, ST_ONNX), [Passages(100, 80)], seconds=50)],
    ),
    "LlamaIndex": Part(
        "adapters for LlamaIndex", [Race("base", tuple(LLAMA_INDEX), [Passages(40, 80)])]
    ),
    "LangChain": Part(
        "adapters for LangChain", [Race("base", tuple(LANGCHAIN), [Passages(40, 80)], seconds=30)]
    ),
    "overhead": Part(
        "what our adapters take on top of scoring", [Overhead("base", Passages(40, 80))]
    ),
    "cold start": Part(
        "from starting Python to the first score",
        [
            ColdStart(
                "base",
                (OURS, REFERENCE, FLAG, "transformers", ORT, *LLAMA_INDEX, *LANGCHAIN),
                starts=2,
            )
        ],
    ),
    "peak": Part(
        "share of the machine's fastest matrix product",
        [Race("base", (OURS, OURS_BF16), [EqualPairs(16, 128), EqualPairs(8, 256)], seconds=30)],
    ),
    "memory": Part(
        "peak memory",
        [Race("base", (*FEW, ORT), [Passages(30, 260, 0.2)], most_turns=1)],
    ),
    "10,000 passages": Part(
        "memory with the number of passages, which is to be bounded",
        [
            Race(
                "mini",
                (OURS,),
                [Passages(100, 12), Passages(1000, 12), Passages(10_000, 12)],
                most_turns=1,
                axis="passages",
            )
        ],
    ),
    "concurrency": Part(
        "many callers at once",
        [
            Callers("mini", THREE, seconds=40),
            Callers("base", THREE, requests=1, seconds=40),
        ],
    ),
    "candidates": Part(
        "scaling with the number of candidates",
        [
            Race(
                "mini",
                THREE,
                [Passages(count, 80) for count in (10, 30, 100, 300, 2000)],
                seconds=90,
                axis="passages",
            )
        ],
    ),
    "length": Part(
        "scaling with length",
        [
            # 2048 tokens each, so that the curve shows the length alone
            Race(
                "base",
                THREE,
                [EqualPairs(2048 // tokens, tokens) for tokens in (32, 64, 128, 256, 512)],
                seconds=90,
                axis="tokens",
            )
        ],
    ),
    "8,192 tokens": Part(
        "one passage up to the limit of bge-reranker-v2-m3",
        [
            Race(
                "v2-m3",
                THREE,
                [EqualPairs(1, tokens) for tokens in (512, 2048, 8192)],
                most_turns=3,
                axis="tokens",
            )
        ],
    ),
    "LLM": Part(
        "an LLM reranker, 4 layers of most of v2-gemma's width",
        [Race("gemma-4-layers", LLMS, [Passages(16, 80, 0.2)], seconds=90)],
    ),
    "v2-gemma": Part(
        "bge-reranker-v2-gemma's true shape, ours alone",
        [Race("gemma", (OURS, OURS_BF16), [Passages(16, 80, 0.2)], most_turns=1)],
        on_request=True,
    ),
}
