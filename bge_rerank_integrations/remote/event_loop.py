"""The event loop of all requests, on a thread of its own.

Because all requests run on it, a scorer serves any number of threads and event loops, and waiting
for a server occupies no thread of the caller's pool. Context variables travel with the work.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from bge_rerank_integrations.base.deadline import check_cancelled, from_thread, off_main_thread

T = TypeVar("T")

_CANCEL_POLL_SECONDS = 0.05

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_inherited_loops: list[asyncio.AbstractEventLoop | None] = []


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start the coroutine on the shared loop; cancelling the future stops it."""
    global _loop
    # An abandoned scorer's server is closed from here on any thread, at any moment, so no lock is
    # taken once the loop exists: an interrupted main thread could leave it locked.
    loop = _loop
    if loop is None:
        with _lock:
            if _loop is None:
                new = asyncio.new_event_loop()
                threading.Thread(target=new.run_forever, name="bge-rerank-io", daemon=True).start()
                _loop = new
            loop = _loop
    return asyncio.run_coroutine_threadsafe(work, loop)


def run(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the call's coroutine and wait for its result; interrupting the caller stops it."""
    return off_main_thread(_run, call)


def _run(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    future = submit(call())
    try:
        while True:
            check_cancelled()
            if wait([future], timeout=_CANCEL_POLL_SECONDS).done:
                return future.result()
    finally:
        future.cancel()


async def arun(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`run`, awaitable from any event loop; cancelling the awaiting task stops the coroutine."""
    started: list[Future[T]] = []

    def start() -> Future[T]:
        started.append(submit(call()))
        return started[0]

    try:
        return await from_thread(start)
    except BaseException:
        for future in started:
            off_main_thread(future.cancel)
        raise


def _forget_loop() -> None:
    # The loop's thread does not exist in the child. The loop itself is kept alive: collecting it
    # would remove the parent's sockets from the selector that both processes share.
    global _loop, _lock
    _inherited_loops.append(_loop)
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_loop)
