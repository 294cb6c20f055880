"""A contender in a process of its own, loaded once, which works only while it is asked to.

So contenders share neither threads nor allocator nor settings, and can still take turns.

    python -m benchmarks.worker "ours fp32" FOLDER     a cold start: import, load, one pair
"""

import argparse
import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import EVERYONE, Pair, Score, Unavailable


class Worker:
    """The parent's end: `score`, `serve_many` and `peak_memory` wait for the answer.

    Raises `Unavailable` for a contender that cannot be loaded here, and `ConnectionError` when its
    process has died; what killed it is on stderr.
    """

    def __init__(self, peer: str, folder: Path) -> None:
        self.peer = peer
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, peer, folder), daemon=True)
        self._process.start()
        theirs.close()
        problem = self._receive()
        if problem is not None:
            raise Unavailable(problem)

    def score(self, pairs: Sequence[Pair]) -> tuple[NDArray[np.float64], float]:
        """The scores, and the seconds they took."""
        scores, seconds = self._ask("score", pairs)
        return scores, seconds

    def serve_many(self, requests: Sequence[Sequence[Pair]], callers: int) -> dict[str, Any]:
        """Requests answered by so many callers at once: seconds, latencies, what went wrong."""
        served: dict[str, Any] = self._ask("serve_many", requests, callers)
        return served

    def peak_memory(self) -> int:
        """The most bytes that the process has held so far."""
        peak: int = self._ask("peak_memory")
        return peak

    def _ask(self, task: str, *arguments: object) -> Any:
        try:
            self._connection.send((task, arguments))
        except BrokenPipeError as error:
            raise ConnectionError(f"{self.peer} died earlier") from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise ConnectionError(f"{self.peer} died; see its traceback above") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()  # which ends the process, unless it is stuck in its work
        self._process.join(timeout=10)
        self._process.terminate()


def _work(connection: Connection, peer: str, folder: Path) -> None:
    silence()
    try:
        score = EVERYONE[peer].load(folder)
    except (ModuleNotFoundError, Unavailable) as error:
        connection.send(str(error))
        return
    connection.send(None)
    tasks: dict[str, Callable[..., Any]] = {
        "score": lambda pairs: _timed(score, pairs),
        "serve_many": lambda requests, callers: serve_many(score, requests, callers),
        "peak_memory": peak_memory,
    }
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:  # the parent has gone
            return
        connection.send(tasks[task](*arguments))


def _timed(score: Score, pairs: Sequence[Pair]) -> tuple[NDArray[np.float64], float]:
    begin = time.perf_counter()
    scores = score(pairs)
    return scores, time.perf_counter() - begin


def serve_many(score: Score, requests: Sequence[Sequence[Pair]], callers: int) -> dict[str, Any]:
    """Answer the requests from `callers` threads, and compare with the answers given alone."""
    alone = [score(request) for request in requests]
    latencies: list[float] = []
    start = threading.Barrier(callers)

    def call(mine: Sequence[int]) -> int:
        start.wait()
        wrong = 0
        for number in mine:
            begin = time.perf_counter()
            scores = score(requests[number])
            latencies.append(time.perf_counter() - begin)
            wrong += not np.allclose(scores, alone[number], atol=1e-3)
        return wrong

    begin = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        shares = [range(caller, len(requests), callers) for caller in range(callers)]
        calls = [pool.submit(call, share) for share in shares]
    seconds = time.perf_counter() - begin
    problems = [problem for done in calls if (problem := done.exception()) is not None]
    return {
        "seconds": seconds,
        "latencies": latencies,
        "wrong": sum(done.result() for done in calls if done.exception() is None),
        "failed": len(problems),
        "problem": repr(problems[0]) if problems else None,
    }


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage's, this figure has nothing of the parent's
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def silence() -> None:
    """No network, no progress bars, no chatter about loading."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
    }


def main() -> None:
    """Print, as JSON, the seconds that import, load and the first pair take in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=EVERYONE)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    peer = EVERYONE[asked.peer]
    silence()
    times = [time.perf_counter()]
    importlib.import_module(peer.module)
    times.append(time.perf_counter())
    score = peer.load(asked.folder)
    times.append(time.perf_counter())
    score([("What is a panda?", "A bear that eats bamboo.")])
    times.append(time.perf_counter())
    steps = {
        name: later - earlier
        for name, earlier, later in zip(
            ("import", "load", "first"), times[:-1], times[1:], strict=True
        )
    }
    print(json.dumps(steps | {"modules": len(sys.modules)}))


if __name__ == "__main__":
    main()
