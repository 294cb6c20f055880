"""Stopping a rerank: when the task that asked for it is cancelled, or when its time is over.

Nothing can interrupt a thread, so the work asks: scorers call `check_cancelled()` and look at
`seconds_left()` between batches. Both travel in context variables, so that scorers around scorers
need not pass them on.
"""

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_flag: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("flag", default=None)
_end: contextvars.ContextVar[float | None] = contextvars.ContextVar("end", default=None)
_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None


class Cancelled(BaseException):
    """Raised inside the worker; a `BaseException` so that no `except Exception` mistakes it."""


def check_cancelled() -> None:
    """Raise `Cancelled` if the task that asked for this work no longer wants it."""
    flag = _flag.get()
    if flag is not None and flag.is_set():
        raise Cancelled


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Give what runs inside so many seconds, or what is left of an outer limit; None adds none."""
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
    """What is left of the time limit, at least 0.0; None without one."""
    end = _end.get()
    return None if end is None else max(0.0, end - time.monotonic())


async def in_worker(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` on a worker thread, with the caller's context, and return what it returns.

    On cancellation the work stops at its next `check_cancelled()`; a call that has not begun is
    dropped. Nothing here is bound to one event loop.
    """
    flag = threading.Event()
    context = contextvars.copy_context()
    context.run(_flag.set, flag)
    future = _workers().submit(context.run, lambda: call(*args, **kwargs))
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        flag.set()
        raise


def _workers() -> ThreadPoolExecutor:
    # Our own pool: the loop's default one is shared with the application, whose blocking calls
    # would starve reranking, and the other way round.
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1)), "bge-rerank")
        return _executor


def _forget_workers() -> None:
    global _executor, _lock
    _executor, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_workers)
