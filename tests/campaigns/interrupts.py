"""Calls that are interrupted anywhere, that a time limit ends, and programs that end meanwhile.

    python -m tests.campaigns.interrupts --size 2000 --seed 1

The size is the number of interrupts: KeyboardInterrupt is raised in the main thread, as a signal's
handler does, at an instruction of this package or of Python's threading, drawn at random. For every
tenth there is a time limit or a cancellation during a long text, and for every hundredth a program
that ends while its threads score. Models, frameworks, options, a server and a first use take turns.
Passes if afterwards every other thread gets the right scores at once, and every worker works; if a
call ends at most `LATE_SECONDS` after its limit, or after the batch that was running when its task
was cancelled, and its work too; and if each program ends without a word.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import bge_rerank_integrations
from bge_rerank_integrations import Reranker, ScoringTimeout
from bge_rerank_integrations.base import deadline
from bge_rerank_integrations.local import engine as engines
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.campaigns.command import run_campaign, time_is_up
from tests.campaigns.threads import (
    KINDS,
    MODELS,
    PASSAGES,
    QUERIES,
    Adapters,
    ask,
    ask_async,
    watched,
)
from tests.remote.fault_server import failing, right

LATE_SECONDS = 0.25
PLACES = (
    str(Path(bge_rerank_integrations.__file__).parent),
    str(Path(concurrent.futures.__file__).parent),
    threading.__file__,
    contextlib.__file__,
)
PIECES = ["A panda. ", "panda ", "a", "大熊猫", "熊。", "é" * 40 + " ", "panda\n\n", "😀"]
PROGRAM = """
import random, sys, threading, time
from bge_rerank_integrations import load_scorer

model, seed = sys.argv[1:]
scorer = load_scorer(model, device=None if model == "offline" else "cpu")
pairs = [("what is a panda? " + str(n), "the giant panda is a bear " * 9) for n in range(40)]
expected = scorer.score(pairs)

def work(rng):
    while True:
        some = rng.sample(range(40), rng.randint(1, 40))
        assert abs(scorer.score([pairs[n] for n in some]) - expected[some]).max() < 1e-5

for number in range(4):
    rng = random.Random(f"{seed}/{number}")
    threading.Thread(target=work, args=(rng,), daemon=True).start()
time.sleep(random.Random(seed).random() / 10)
"""


def campaign(size: int, seed: int) -> Counter[str]:
    """The number of calls by how they ended; raises `AssertionError` for a wrong one."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, failing(right) as server:
        models = []
        for name, build in MODELS.items():
            place = Path(folder) / name
            place.mkdir()
            models.append(Adapters(str(build(place)), place))
        for number in range(size):
            if time_is_up():
                break
            adapters = models[number % len(models)]
            with watched():
                interrupt_once(adapters, server.url, random.Random(f"{seed}/{number}"), counts)
                if number % 10 == 0:
                    run_late(adapters, random.Random(f"{seed}/limit {number}"), counts)
            if number % 100 == 0:
                _end_a_program(adapters.model, f"{seed}/{number}")
                counts["programs ended"] += 1
        with watched():
            every_worker_works()
    return counts


def interrupt_once(adapters: Adapters, url: str, rng: random.Random, counts: Counter[str]) -> None:
    """Interrupt a call somewhere; then other threads must be right."""
    kind = rng.choice([*CALLS, "requests"])
    call = _asks_a_server(url, rng) if kind == "requests" else CALLS[kind](adapters, rng)
    stop = rng.randint(1, _instructions(call))
    try:
        _instructions(call, stop)
    except KeyboardInterrupt:
        counts[f"interrupted {kind}"] += 1
    with ThreadPoolExecutor(2) as others:  # threads that were never interrupted
        for done in [others.submit(call), others.submit(_calls_async(adapters, rng))]:
            done.result()
    for (process, _), engine in list(engines._engines.items()):
        if process == os.getpid():
            engine.wait_until_idle()


def _instructions(call: Callable[[], object], stop: int | None = None) -> int:
    """How many instructions of `PLACES` this thread runs; it is interrupted at the `stop`th."""
    seen = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Callable[..., Any] | None:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(PLACES):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode":
            seen += 1
            if seen == stop:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return seen


def _calls_sync(adapters: Adapters, rng: random.Random) -> Callable[[], None]:
    (kind, name), adapter = rng.choice(list(adapters.shared.items()))
    query, passages = rng.choice(QUERIES), rng.sample(PASSAGES, 4)

    def call() -> None:
        try:
            adapters.check(name, query, passages, ask(adapter, query, passages))
        except ScoringTimeout:
            assert name == "in time", (kind, name)

    return call


def _calls_async(adapters: Adapters, rng: random.Random) -> Callable[[], None]:
    (kind, name), adapter = rng.choice(list(adapters.shared.items()))
    query, passages = rng.choice(QUERIES), rng.sample(PASSAGES, 4)

    async def ask_once() -> None:
        try:
            adapters.check(name, query, passages, await ask_async(adapter, query, passages))
        except ScoringTimeout:
            assert name == "in time", (kind, name)

    def call() -> None:
        with asyncio.Runner() as runner:
            runner.run(ask_once())

    return call


def _loads(adapters: Adapters, rng: random.Random) -> Callable[[], None]:
    score = _calls_sync(adapters, rng)

    def call() -> None:
        adapters.close()
        score()

    return call


def _asks_a_server(url: str, rng: random.Random) -> Callable[[], None]:
    pairs = [("a b c", "a"), ("a b c", "a b"), ("x", "x")]
    is_async = rng.random() < 0.5

    def call() -> None:
        row = replace(DIALECTS["tei"], self_hosted=False)
        with RemoteScorer(url, dialect=row) as scorer:
            found = asyncio.run(scorer.ascore(pairs)) if is_async else scorer.score(pairs)
        assert found.tolist() == [-0.5, 0.5, -0.5]

    return call


CALLS: dict[str, Callable[[Adapters, random.Random], Callable[[], None]]] = {
    "calls": _calls_sync,
    "tasks": _calls_async,
    "first uses": _loads,
}


def run_late(adapters: Adapters, rng: random.Random, counts: Counter[str]) -> None:
    """Give a long call too little time, or cancel it; neither it nor its work may go on."""
    (_, name), adapter = rng.choice(list(adapters.shared.items()))
    piece = rng.choice(PIECES)
    length = int(10 ** rng.uniform(4, 6))
    texts = [f"{n} {piece * (length // len(piece))}" for n in range(2_000_000 // length)]
    seconds = rng.uniform(0.05, 0.3)
    scorer = adapter.loaded_scorer()
    reranker = Reranker(scorer, explain=rng.random() < 0.3)
    cancel = rng.random() < 0.5
    ended = threading.Event()
    batch = _seconds_of_a_batch(adapters, texts) if cancel else 0.0
    begin = _now()
    if cancel:
        asyncio.run(_cancelled(reranker, texts, seconds, ended))
        assert ended.wait(60)
    else:
        reranker.options.timeout = seconds
        with contextlib.suppress(ScoringTimeout):
            reranker.rerank(rng.choice(QUERIES), texts)
    spent = _spent(begin)
    what = f"{name}, {len(texts)} texts of {length} characters, {piece!r}, {cancel=}"
    assert spent < seconds + batch + LATE_SECONDS, (spent, seconds, batch, what)
    counts["long tasks cancelled" if cancel else "time limits"] += 1


def _seconds_of_a_batch(adapters: Adapters, texts: list[str]) -> float:
    """How long the batch may take that runs when a task is cancelled: four texts of 512 tokens."""
    begin = _now()
    scorer = adapters.shared[KINDS[0], "plain"].loaded_scorer()
    scorer.score([(QUERIES[0], text[:3000]) for text in texts[:4]])
    return _spent(begin)


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _spent(begin: tuple[float, float]) -> float:
    """Seconds by the clock or, for others may have the processor, by it, whichever are fewer."""
    return min(now - was for now, was in zip(_now(), begin, strict=True))


async def _cancelled(
    reranker: Reranker, texts: list[str], seconds: float, ended: threading.Event
) -> None:
    def work() -> None:
        try:
            reranker.rerank("what is a panda?", texts)
        finally:
            ended.set()

    task = asyncio.create_task(deadline.in_worker(work))
    await asyncio.wait([task], timeout=seconds)
    task.cancel()
    await asyncio.wait([task])


def every_worker_works() -> None:
    """Let all threads of the pool for tasks wait for one another."""
    workers = deadline._workers()._max_workers
    barrier = threading.Barrier(workers)

    async def all_at_once() -> None:
        await asyncio.gather(*(deadline.in_worker(barrier.wait) for _ in range(workers)))

    asyncio.run(all_at_once())


def _end_a_program(model: str, seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, model, seed],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": random.Random(seed).choice("12")},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), (model, seed, done)


if __name__ == "__main__":
    run_campaign("interrupts", campaign, size=2000)
