"""A contender in a process of its own, loaded once, which works only while it is asked to.

So contenders share neither threads nor allocator nor settings, and can still take turns.
"""

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

from benchmarks.peers import Pair, Score, Unavailable
from benchmarks.plan import EVERYONE

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """The parent's end: `score`, `serve_many` and `peak_memory` wait for the answer.

    `loaded` says which versions the contender runs on, if they are not the environment's own, and
    how many bytes the process held once it was loaded.

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
        try:
            self.loaded: dict[str, Any] = self._receive()
        except ConnectionError as error:
            raise Unavailable(str(error)) from error
        if "problem" in self.loaded:
            raise Unavailable(self.loaded["problem"])

    def score(self, pairs: Sequence[Pair]) -> tuple[NDArray[np.float64], float]:
        """The scores, and the seconds they took."""
        scores, seconds = self._ask("score", pairs)
        return scores, seconds

    def serve_many(self, requests: Sequence[Sequence[Pair]], callers: int) -> dict[str, Any]:
        """Requests answered by so many callers at once: see the function of that name."""
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
        put_packages_first(peer)
        score = EVERYONE[peer].load(folder)
    except (ModuleNotFoundError, Unavailable) as error:
        connection.send({"problem": str(error)})
        return
    connection.send({"versions": own_versions(peer), "memory": memory("VmRSS")})
    tasks: dict[str, Callable[..., Any]] = {
        "score": lambda pairs: _timed(score, pairs),
        "serve_many": lambda requests, callers: serve_many(score, requests, callers),
        "peak_memory": lambda: memory("VmHWM"),
    }
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:  # the parent has gone
            return
        connection.send(tasks[task](*arguments))


def put_packages_first(peer: str) -> None:
    """Put the contender's own folder of packages before the environment's.

    Raises `Unavailable` where it was not installed.
    """
    packages = EVERYONE[peer].packages
    if packages is None:
        return
    if not (ROOT / packages / "transformers").is_dir():
        raise Unavailable(f"no {packages}: make {packages}/ready")
    already = {"tokenizers", "transformers"} & set(sys.modules)
    if already:
        raise RuntimeError(f"{already} imported before {packages} was put first")
    sys.path.insert(0, str(ROOT / packages))


def own_versions(peer: str) -> dict[str, str]:
    """The versions of what was loaded from the contender's own folder of packages."""
    if EVERYONE[peer].packages is None:
        return {}
    names = ("transformers", "sentence_transformers")
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}


def _timed(score: Score, pairs: Sequence[Pair]) -> tuple[NDArray[np.float64], float]:
    begin = time.perf_counter()
    scores = score(pairs)
    return scores, time.perf_counter() - begin


def serve_many(score: Score, requests: Sequence[Sequence[Pair]], callers: int) -> dict[str, Any]:
    """Answer the requests from `callers` threads: scores (None where it failed) and seconds."""
    latencies: list[float] = []
    scores: list[NDArray[np.float64] | None] = [None] * len(requests)
    start = threading.Barrier(callers + 1)

    def call(mine: Sequence[int]) -> None:
        start.wait()
        for number in mine:
            begin = time.perf_counter()
            scores[number] = score(requests[number])
            latencies.append(time.perf_counter() - begin)

    with ThreadPoolExecutor(callers) as pool:
        shares = [range(caller, len(requests), callers) for caller in range(callers)]
        calls = [pool.submit(call, share) for share in shares]
        start.wait()
        begin = time.perf_counter()
        problems = [problem for done in calls if (problem := done.exception()) is not None]
        seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "latencies": latencies,
        "scores": scores,
        "problem": repr(problems[0]) if problems else None,
    }


def memory(kind: str) -> int:
    """Resident bytes of this process: now with "VmRSS", at the most so far with "VmHWM"."""
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage's, this figure has nothing of the parent's
        line = next(x for x in status.read_text().splitlines() if x.startswith(kind))
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
