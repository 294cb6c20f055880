"""Stop a rerank when its task is cancelled or its time limit has passed.

Nothing can interrupt a thread, so the work checks for itself: between two batches, and once per
ten texts that it checks, tokenizes or joins. The flag and the limit are context variables,
so that scorers that wrap scorers need not pass them on.
"""

import asyncio
import atexit
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from bge_rerank_integrations.errors import ScoringTimeout

P = ParamSpec("P")
T = TypeVar("T")
Job = tuple[Sequence[Callable[[], object]], Callable[[], Any], SimpleQueue[Any]]
"""Calls that copy a thread's settings, the work, and where its result or error goes."""

_flag: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("flag", default=None)
_end: contextvars.ContextVar[float | None] = contextvars.ContextVar("end", default=None)
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_here = threading.local()
_main_jobs: "SimpleQueue[Job | None] | None" = None
_exiting = False

thread_settings: list[Callable[[], Callable[[], object]]] = []
"""Each is called on a caller's thread and gives a function that copies settings to another thread.

For settings that a library keeps for each thread, such as torch's number of threads.
"""


class Cancelled(BaseException):
    """Raised inside the worker; a `BaseException` so that no `except Exception` mistakes it."""


def check_cancelled() -> None:
    """Raise `Cancelled` if the task that started this work was cancelled."""
    flag = _flag.get()
    if flag is not None and flag.is_set():
        raise Cancelled


def check_time(doing: str) -> None:
    """Raise `Cancelled` as `check_cancelled`, or `ScoringTimeout` if the time limit has passed.

    `doing` completes "the time limit passed while ...". For work before the first score.
    """
    check_cancelled()
    if seconds_left() == 0.0:
        raise ScoringTimeout(f"the time limit passed while {doing}; allow more time, or less text")


def cancellable(things: Iterable[T], doing: str | None = None) -> Iterator[T]:
    """The things, with `check_cancelled` before every ten, or `check_time(doing)`."""
    for place, thing in enumerate(things):
        if place % 10 == 0:
            check_cancelled() if doing is None else check_time(doing)
        yield thing


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit the code inside to these seconds, or to the rest of an outer limit; None adds none."""
    if seconds is None:
        yield
        return
    end, outer = time.monotonic() + seconds, _end.get()
    token = _end.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _end.reset(token)


def seconds_left() -> float | None:
    """Seconds left of the time limit, at least 0.0; None without one."""
    end = _end.get()
    return None if end is None else max(0.0, end - time.monotonic())


async def in_worker(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` on a worker thread, with the caller's context, and return what it returns.

    On cancellation the work stops at its next `check_cancelled()`; a call that has not begun is
    dropped. It works on any event loop, of asyncio or trio.
    """
    if getattr(_here, "is_worker", False):
        # a callback on a worker reranks again: waiting for another worker could deadlock
        return call(*args, **kwargs)
    flag = threading.Event()
    context = contextvars.copy_context()
    context.run(_flag.set, flag)

    def work() -> T:
        context.run(check_cancelled)
        return context.run(call, *args, **kwargs)

    trio = sys.modules.get("trio")  # loaded by any program that runs in it
    try:
        if trio is not None and trio.lowlevel.in_trio_run():
            done: T = await trio.to_thread.run_sync(work, abandon_on_cancel=True)
            return done
        return await from_thread(lambda: _workers().submit(work))
    except BaseException:  # asyncio's and trio's cancellation
        flag.set()
        raise


async def from_thread(start: Callable[[], Future[T]]) -> T:
    """Await the future that `start` returns. Cancelling this does not cancel the future.

    The main thread, which signals interrupt, never takes the lock of the future or of its pool: if
    it left one locked, the worker that has the result would wait forever.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not answer.done():  # else it was cancelled
            set_outcome(outcome)

    def pass_on(future: Future[T]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        outcome = (
            (answer.set_result, future.result()) if error is None else (answer.set_exception, error)
        )
        with suppress(RuntimeError):  # the loop was closed, and nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    try:
        off_main_thread(lambda: start().add_done_callback(pass_on))
        return await answer
    except BaseException:
        answer.cancel()
        raise


def _workers() -> ThreadPoolExecutor:
    # Our own pool: the loop's default one is shared with the application, whose blocking calls
    # would starve reranking, and vice versa.
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(
                min(32, 4 * (os.cpu_count() or 1)), "bge-rerank", initializer=_mark_worker
            )
        return _executor


def _mark_worker() -> None:
    _here.is_worker = True


def off_main_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` where no signal handler can interrupt it, and return what it returns.

    Python runs signal handlers on the main thread. An exception that one raises there (Ctrl-C, a
    task queue's soft time limit) may leave a semaphore or a condition locked forever. So the main
    thread passes its work to a thread of its own and waits on a C queue, which holds no lock. If
    the wait is interrupted, the work stops at its next `check_cancelled()`. Other threads run
    `call` themselves. The caller's thread-local state, such as torch's modes, does not reach `call`
    from the main thread; context variables do.
    """
    if threading.get_ident() != threading.main_thread().ident or _exiting:
        return call(*args, **kwargs)
    jobs = _main_worker()
    if jobs is None:
        return call(*args, **kwargs)
    answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    context = contextvars.copy_context()
    flag = _flag.get() or threading.Event()
    context.run(_flag.set, flag)
    copies = [setting() for setting in thread_settings]
    jobs.put((copies, partial(context.run, call, *args, **kwargs), answer))
    outcome: tuple[T | None, BaseException | None] | None = None
    try:
        while outcome is None:
            with suppress(Empty):  # in turns: a signal just before a wait does not end it
                outcome = answer.get(timeout=1)
    except BaseException:
        flag.set()
        raise
    return _returned(*outcome)


def watched(call: Callable[[], T], doing: str) -> T:
    """Run native code that may take long, with `check_time(doing)` twenty times a second.

    The code runs on a thread of its own and must let other threads run. Nothing can stop it: if the
    time limit passes, it goes on in the background.
    """
    jobs: SimpleQueue[Job | None] = SimpleQueue()
    answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
    jobs.put(((), call, answer))
    jobs.put(None)
    try:
        threading.Thread(target=_work, args=(jobs,), name="bge-rerank-watched").start()
    except RuntimeError:  # during shutdown
        return call()
    while True:
        check_time(doing)
        with suppress(Empty):
            return _returned(*answer.get(timeout=0.05))


def _returned(result: T | None, error: BaseException | None) -> T:
    if error is not None:
        cause = error.__context__
        try:
            raise error
        finally:
            error.__context__ = cause  # not an exception that the caller was handling
            del error  # else the traceback's frame and the error would form a cycle
    return result  # type: ignore[return-value]


def _main_worker() -> SimpleQueue[Job | None] | None:
    """The queue of the main thread's worker; None if the interpreter starts no more threads."""
    # no lock: only the main thread comes here
    global _main_jobs
    if _main_jobs is None:
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        worker = threading.Thread(target=_work, args=(jobs,), name="bge-rerank-main", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # during shutdown; nothing is left to interrupt the call
            return None
        atexit.register(_end_main_worker, jobs, worker)
        _main_jobs = jobs
    return _main_jobs


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        copies, call, answer = job
        try:
            for copy in copies:
                copy()
            answer.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
            answer.put((None, error))
        del job, copies, call, answer  # do not keep a call's objects alive until the next call


def _end_main_worker(jobs: SimpleQueue[Job | None], worker: threading.Thread) -> None:
    """Let an interrupted call end before the interpreter shuts its libraries down."""
    global _exiting
    _exiting = True
    jobs.put(None)
    worker.join()


def _forget_workers() -> None:
    global _executor, _lock, _main_jobs
    _executor, _lock, _main_jobs = None, threading.Lock(), None
    _here.is_worker = False


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_workers)
