"""Ctrl-C between two batches: the call ends, and the scorer goes on being right."""

import asyncio
import concurrent.futures
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import bge_rerank_integrations
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.base.deadline import in_worker, time_limit
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.remote.scorer import RemoteScorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.fakes import WordOverlapScorer
from tests.local.llm.tiny_llms import build_gemma
from tests.remote.fault_server import failing, right

PLACES = (
    str(Path(bge_rerank_integrations.__file__).parent),
    str(Path(concurrent.futures.__file__).parent),
    threading.__file__,
)
# an interrupt in a callback of a weak reference is ignored, and a coroutine may not begin
IGNORED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PAIRS = [("what is a panda?", "The giant panda is a bear."), ("rivers", "The Yangtze is long.")]
INTERRUPTED = """
import json, sys
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.base.deadline import in_worker, time_limit
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.remote.scorer import RemoteScorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.fakes import WordOverlapScorer
from tests.local.llm.tiny_llms import build_gemma

folder, pairs = sys.argv[1], json.loads(sys.argv[2])
scorer = load_scorer(folder, device="cpu", batch_size=4, show_progress=True)
many = [(f"{query} {number}", passage) for number in range(15_000) for query, passage in pairs]
try:
    scorer.score(many)
except KeyboardInterrupt:
    print(json.dumps(scorer.score([tuple(pair) for pair in pairs]).tolist()))
"""


def test_an_interrupted_call_ends_and_the_next_is_right(reranker_base: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(reranker_base), json.dumps(PAIRS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    with child:
        shown = b""
        while b"/30000" not in shown:  # the bar is drawn when the first batches are done
            piece = os.read(child.stderr.fileno(), 4096)
            assert piece, "it ended before it showed how far it is"
            shown += piece
        child.send_signal(signal.SIGINT)
        child.stderr.read()
        said = child.stdout.read()
    assert child.returncode == 0
    expected = load_scorer(str(reranker_base), device="cpu").score(PAIRS)
    # how each process multiplies is decided by timing, which the last digits show
    np.testing.assert_allclose(json.loads(said), expected, atol=1e-5, rtol=0)


@pytest.fixture(params=["offline", "reranker_base", "gemma"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "offline":
        return "offline"
    if request.param == "gemma":
        return str(build_gemma(tmp_path / "gemma"))
    return str(request.getfixturevalue("reranker_base"))


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Run `call`, and raise KeyboardInterrupt as it begins the line of this number in `PLACES`.

    Signal handlers raise like that, on the main thread alone. False if there was no such line.
    """
    seen = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Callable[..., Any] | None:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(PLACES):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    def interrupted() -> Iterator[None]:
        with suppress(KeyboardInterrupt):  # it does not leave a callback of a weak reference
            call()
        yield

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        # Python 3.11 goes on "handling" an error if the line is the end of its handler: in a
        # generator this ends with it, and no later error gets that one as its context
        list(interrupted())
    finally:
        sys.settrace(before)
    return seen >= line


def test_an_interrupt_at_any_line_leaves_the_engine_whole(
    model_folder: str,
) -> None:
    assert threading.current_thread() is threading.main_thread()
    device = None if model_folder == "offline" else "cpu"
    scorer = load_scorer(model_folder, device=device)
    expected = scorer.score(PAIRS)
    with time_limit(300):  # a permit that is lost is a ScoringTimeout, and no test that hangs
        lines = 1
        while interrupted_at(lines, lambda: scorer.score(PAIRS)):
            lines += 1
        assert lines > 20
        contexts = [copy_context() for _ in range(16)]
        with ThreadPoolExecutor(8) as others:
            # as many at once as the gate admits, on threads that were never interrupted
            for scores in others.map(lambda c: c.run(scorer.score, PAIRS), contexts):
                np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=1e-6, rtol=0)


def score_with_a_cache() -> Callable[[], None]:
    scorer = CachedScorer(WordOverlapScorer(), MemoryStore())

    def call() -> None:
        assert scorer.score([("red fox", "a red fox")]).tolist() == [2.0]

    return call


def load_a_model() -> Callable[[], None]:
    encoder = BGECrossEncoder(model="offline", keep_alive=0.0)
    expected = encoder.score(PAIRS)

    def call() -> None:
        encoder.close()
        np.testing.assert_allclose(encoder.score(PAIRS), expected, atol=1e-6, rtol=0)

    return call


def run_tasks() -> Callable[[], None]:
    def call() -> None:
        """As many tasks at once as there are workers, and in the main thread one."""
        main = threading.current_thread() is threading.main_thread()
        workers = 1 if main else deadline._workers()._max_workers
        together = threading.Barrier(workers)

        async def gather() -> None:
            await asyncio.gather(*(in_worker(together.wait) for _ in range(workers)))

        with asyncio.Runner() as runner:
            runner.run(gather())

    return call


@IGNORED
@pytest.mark.parametrize("make_call", [score_with_a_cache, load_a_model, run_tasks])
def test_an_interrupt_at_any_line_leaves_no_lock_held(
    make_call: Callable[[], Callable[[], None]],
) -> None:
    call = make_call()
    call()
    lines = 1
    while interrupted_at(lines, call):
        lines += 1
    gc.collect()  # the warnings are of this test
    assert lines > 10
    assert ends_elsewhere(call)


@IGNORED
@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupt_at_any_line_leaves_the_loop_of_requests_whole(is_async: bool) -> None:
    pairs = [("a b c", "a"), ("a b c", "a b")]
    with failing(right) as server, RemoteScorer(server.url, dialect="tei") as scorer:

        async def score() -> list[float]:
            found: list[float] = (await scorer.ascore(pairs)).tolist()
            return found

        def call() -> None:
            if is_async:
                with asyncio.Runner() as runner:
                    assert runner.run(score()) == [-0.5, 0.5]
            else:
                assert scorer.score(pairs).tolist() == [-0.5, 0.5]

        call()
        lines = 1
        while interrupted_at(lines, call):
            lines += 1
        gc.collect()
        assert ends_elsewhere(call)


def ends_elsewhere(call: Callable[[], None]) -> bool:
    """Whether the call works on a thread that was never interrupted; it may hang for ever."""
    ended = threading.Event()

    def run() -> None:
        call()
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    return ended.wait(120)
