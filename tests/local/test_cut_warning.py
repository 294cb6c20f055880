"""Nothing is cut in silence: a warning once for each scorer, with counts, whatever the model."""

import inspect
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from bge_rerank_integrations import Reranker, load_reranker, load_scorer
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.text.cross_encoder import cross_encoding
from bge_rerank_integrations.options import PairOptions
from tests import tiny_models
from tests.local.llm import tiny_llms
from tests.local.oracle import NO_LIMITS, OracleForward, engine_over

SHORT, LONG, LONGER = "a red fox", "the red fox runs " * 60, "a dog sleeps " * 90
BUILD: list[Callable[[Path], Path]] = [
    tiny_models.build_reranker_base,
    tiny_models.build_bge_embedder,
    tiny_llms.build_gemma,
]


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("build", BUILD)
def test_what_is_cut_is_counted_and_said_once(
    build: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    traces: list[RerankTrace] = []
    with load_scorer(str(build(tmp_path / "model")), max_length=64, device="cpu") as scorer:
        reranker = Reranker(scorer, on_trace=traces.append)
        reranker.rerank("red fox", [SHORT, SHORT + " and a dog"])
        assert warnings(caplog) == []
        reranker.rerank("red fox", [SHORT, LONG, LONGER, LONG])  # equal pairs are scored once
        said = "2 of 3 pairs were longer than max_length=64 tokens and were cut"
        assert [message.startswith(said) for message in warnings(caplog)] == [True]
        assert "fox" not in warnings(caplog)[0]
        reranker.rerank("red fox", [LONGER])
    assert len(warnings(caplog)) == 1
    assert [trace.counts["cut"] for trace in traces] == [0, 2, 1]


@pytest.mark.parametrize(
    ("query", "passages", "options", "said"),
    [
        (
            LONG,
            [SHORT, "a dog"],
            {"max_length": 64},
            "2 of 2 pairs were longer than query_max_length=48 tokens",
        ),
        (
            SHORT,
            [SHORT],
            {"query_max_length": 2},
            "1 of 1 pairs were longer than query_max_length=2 tokens",
        ),
        (
            LONG,
            [SHORT, LONG],
            {"max_length": 64, "truncation": "longest_first"},
            "2 of 2 pairs were longer than max_length=64 tokens",
        ),
    ],
    ids=["both", "query", "longest_first"],
)
def test_a_query_that_is_cut_counts_too_and_the_option_that_cut_it_is_named(
    reranker_base: Path,
    caplog: pytest.LogCaptureFixture,
    query: str,
    passages: list[str],
    options: dict[str, Any],
    said: str,
) -> None:
    load_reranker(str(reranker_base), device="cpu", **options).rerank(query, passages)
    assert [message.partition(" and")[0] for message in warnings(caplog)] == [said]


@pytest.mark.parametrize("build", BUILD)
def test_both_options_are_named_where_both_cut(
    build: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load_scorer(
        str(build(tmp_path / "model")), max_length=64, query_max_length=12, device="cpu"
    ) as scorer:
        scorer.score([("red fox", LONG), (LONG, SHORT), (LONG, LONG)])
    assert [message.partition(" and")[0] for message in warnings(caplog)] == [
        "3 of 3 pairs were longer than max_length=64 or query_max_length=12 tokens"
    ]


def test_another_scorer_says_it_again_and_the_same_one_in_another_reranker_does_not(
    reranker_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorers = [load_scorer(str(reranker_base), max_length=64, device="cpu") for _ in range(2)]
    for scorer in (*scorers, *scorers):
        Reranker(scorer).rerank("red fox", [LONG])
    assert len(warnings(caplog)) == 2


def in_step(threads: int, file: str) -> Callable[[FrameType, str, object], Any]:
    """A trace function under which the threads run each line of a file together.

    A line that only one of them can be at, because it holds a lock, is waited at once and then
    passed: such a wait can make a fault go unseen, and none appear.
    """
    lines: dict[tuple[CodeType, int], threading.Barrier] = {}

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            line = (frame.f_code, frame.f_lineno)
            with suppress(threading.BrokenBarrierError):
                lines.setdefault(line, threading.Barrier(threads, timeout=0.3)).wait()
        return trace

    return trace


def test_sixteen_threads_that_cut_at_once_say_it_once(
    reranker_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_over(OracleForward(), reranker_base)
    method = cross_encoding(engine.tokenizer, PairOptions(max_length=32), limit=512)
    scorer = LocalScorer(engine, method, limits=NO_LIMITS, show_progress=False)
    before = threading.gettrace()
    threading.settrace(in_step(16, inspect.getfile(LocalScorer)))
    try:
        with ThreadPoolExecutor(16) as pool:
            scores = list(pool.map(scorer.score, [[("red fox", LONG)]] * 16))
    finally:
        threading.settrace(before)
    assert len(scores) == 16
    assert len(warnings(caplog)) == 1
