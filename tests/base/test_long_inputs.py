"""Every step of a call looks at the task's cancellation for every ten of its texts.

And within a long text; and no text is copied.
"""

import tracemalloc
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.base.contract import read_pairs
from bge_rerank_integrations.base.deadline import Cancelled
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer
from bge_rerank_integrations.options import PairOptions
from bge_rerank_integrations.ranking.sentences import split_sentences
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore, pair_keys
from bge_rerank_integrations.wrappers.windows import plan_windows
from tests.fakes import WordOverlapScorer
from tests.local.oracle import OracleForward
from tests.local.text.test_input_ids import bi_scorer, cross_scorer

NUMBER = 1000
PASSAGES = [f"panda {number}" for number in range(NUMBER)]
PAIRS = [("q", passage) for passage in PASSAGES]
Step = Callable[[Path], Callable[[], object]]


class SetAfter(Event):
    """A flag that is set from its look of this number on."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        self.looks, self.last = 0, looks

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > self.last


class Unreached(WordOverlapScorer):
    """Its pairs are checked, and the call is cancelled before they are scored."""

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        assert len(pairs) == NUMBER
        raise Cancelled


def checking(_: Path) -> Callable[[], object]:
    return lambda: read_pairs(PAIRS)


def reading_passages(_: Path) -> Callable[[], object]:
    return lambda: Reranker(Unreached()).rerank("q", PASSAGES)


def hashing(_: Path) -> Callable[[], object]:
    return lambda: pair_keys("name", PAIRS)


def joining(folder: Path) -> Callable[[], object]:
    scorer = cross_scorer(folder, OracleForward())
    tokenizer, method = scorer._loaded().tokenizer, scorer._method
    return lambda: method.encode(PAIRS, range(NUMBER), tokenizer)


def joining_for_an_embedder(folder: Path) -> Callable[[], object]:
    scorer = bi_scorer(folder, OracleForward(), PairOptions())
    tokenizer, method = scorer._loaded().tokenizer, scorer._method
    return lambda: method.encode(PAIRS, range(NUMBER), tokenizer)


def measuring(folder: Path) -> Callable[[], object]:
    scorer = cross_scorer(folder, OracleForward())
    tokenizer, method = scorer._loaded().tokenizer, scorer._method
    return lambda: method.measure(PAIRS, range(NUMBER), tokenizer)


STEPS = [checking, reading_passages, hashing, joining, joining_for_an_embedder, measuring]


@pytest.mark.parametrize("step", STEPS)
def test_each_step_looks_for_every_ten_texts(step: Step, reranker_base: Path) -> None:
    assert looks_of(step(reranker_base), stopped=step is reading_passages) >= NUMBER // 10


def looks_of(work: Callable[[], object], *, stopped: bool = False) -> int:
    flag = SetAfter(float("inf"))

    def run() -> None:
        deadline._flag.set(flag)
        try:
            work()
        except Cancelled:
            assert stopped

    copy_context().run(run)
    return flag.looks


def windows(text: str) -> None:
    places = np.arange(len(text))
    plan_windows(text, np.stack([places, places + 1], axis=1), 64, 0)


@pytest.mark.parametrize("step", [split_sentences, windows])
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a ",
        "a, ",
        "a.\n",
        "\n",
        "\r\n",
        "<p>x</p>",
        "| x |\n",
        "竹",
        "竹。",
        "😀",
        "\u200d",
        ".",
    ],
)
def test_each_step_looks_for_each_thousand_characters_of_a_text(
    step: Callable[[str], object], unit: str
) -> None:
    assert looks_of(lambda: step(unit * (20_000 // len(unit)))) >= 20


def test_a_long_text_is_tokenized_with_looks_meanwhile(reranker_base: Path) -> None:
    tokenizer = TextTokenizer(reranker_base)
    for method in (lambda text: tokenizer.encode([text], [0]), lambda t: tokenizer.offsets([t])):
        assert looks_of(partial(method, "a" * 100_000)) == 1
        assert looks_of(partial(method, "a" * 100_001)) >= 2
    (whole,) = tokenizer.encode(["panda " * 20_000], [0])
    assert whole.tolist() == tokenizer.encode(["panda"], [0])[0].tolist() * 20_000


def test_a_call_ends_at_whichever_look_it_is_cancelled(reranker_base: Path) -> None:
    scorer = CachedScorer(cross_scorer(reranker_base, OracleForward()), MemoryStore())
    reranker = Reranker(scorer)
    seen = SetAfter(float("inf"))

    def run(flag: Event) -> int:
        deadline._flag.set(flag)
        return len(reranker.rerank("q", PASSAGES[:200]))

    assert copy_context().run(run, seen) == 200
    for last in range(6):
        with pytest.raises(Cancelled):
            copy_context().run(run, SetAfter(last))
    assert copy_context().run(run, SetAfter(seen.looks)) == 200


@pytest.mark.parametrize("letter", ["p", "\u718a", "\U0001f43c"])
def test_texts_are_not_copied(letter: str) -> None:
    texts = [f"{number} {letter * 20_000}" for number in range(500)]
    reranker = Reranker(WordOverlapScorer(), top_n=3)
    assert len(reranker.rerank(letter, texts[:10])) == 3  # fills caches
    tracemalloc.start()
    try:
        reranker.rerank(letter, texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sum(map(len, texts)) / 10
