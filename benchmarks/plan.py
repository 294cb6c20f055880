"""The programme of the races: which contenders, which model, which texts. Data alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers import LANGCHAIN, LLAMA_INDEX, OURS, PEERS, REFERENCE
from benchmarks.workloads import Texts, Workload


@dataclass(frozen=True, slots=True)
class Passages:
    """So many passages of log-normal length around a mean."""

    count: int
    mean: int
    spread: float = 0.45


@dataclass(frozen=True, slots=True)
class EqualPairs:
    """So many pairs, all of one length in tokens."""

    count: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Race:
    """Contenders on the workloads of one section; the first is the one they are measured by."""

    section: str
    model: str
    peers: Sequence[str]
    texts: Sequence[Passages | EqualPairs] = ()
    most_rounds: int = 10

    def workloads(self, texts: Texts, *, smoke: bool) -> list[Workload]:
        return [draw(texts, wanted, smoke=smoke) for wanted in self.texts]


def draw(texts: Texts, wanted: Passages | EqualPairs, *, smoke: bool) -> Workload:
    """The workload; for a smoke run few and short passages."""
    count = min(wanted.count, 8) if smoke else wanted.count
    if isinstance(wanted, EqualPairs):
        return texts.equal_pairs(count, pair_tokens=min(wanted.tokens, 64 if smoke else 512))
    mean = min(wanted.mean, 30) if smoke else wanted.mean
    name = f"{count} passages of about {mean} tokens"
    return texts.workload(name, count, mean=mean, spread=wanted.spread)


FEW = (OURS, "ours bf16", REFERENCE, "FlagEmbedding")
TWO = (OURS, REFERENCE)

RACES = (
    Race("marco", "base", tuple(PEERS), [Passages(100, 80)]),
    Race("rag", "base", FEW, [Passages(30, 260, 0.2)]),
    Race(
        "length",
        "base",
        (*TWO, "ours bf16"),
        # 2048 tokens each, so that the curve shows the length alone
        [EqualPairs(2048 // tokens, tokens) for tokens in (32, 64, 128, 256, 512)],
    ),
    Race("LlamaIndex", "base", tuple(LLAMA_INDEX), [Passages(40, 80)]),
    Race("LangChain", "base", tuple(LANGCHAIN), [Passages(40, 80)]),
    Race("large", "large", FEW, [Passages(20, 80)]),
    Race("candidates", "mini", TWO, [Passages(10, 80), Passages(100, 80)]),
    Race("candidates", "mini", TWO, [Passages(500, 80), Passages(2000, 80)], most_rounds=1),
)

CONCURRENCY = Race("concurrency", "mini", TWO)
"""Requests from many callers at once: `race.serve_callers`."""
