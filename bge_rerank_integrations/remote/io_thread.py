"""One thread with an event loop of its own, on which all requests of the process run.

It makes one client serve threads and any number of event loops alike: nothing is bound to the
caller's loop, and waiting for a server takes no thread of the caller's pool.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from bge_rerank_integrations.base.deadline import check_cancelled

T = TypeVar("T")

_POLL = 0.05  # seconds between two looks at whether the caller still wants the answer

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_of_parents: list[asyncio.AbstractEventLoop | None] = []


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start the coroutine in the caller's context; cancelling the future stops it."""
    return asyncio.run_coroutine_threadsafe(work, _running_loop())


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Interrupting or cancelling the caller stops the work as well."""
    future = submit(work)
    try:
        while True:
            check_cancelled()
            if wait([future], timeout=_POLL).done:
                return future.result()
    finally:
        future.cancel()


async def arun(work: Coroutine[Any, Any, T]) -> T:
    """`run` for any event loop: cancelling the task that waits here stops the work."""
    return await asyncio.wrap_future(submit(work))


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="bge-rerank-io", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    # The thread is not in the child, and the selector is shared with the parent: the loop is kept,
    # because collecting it would take the parent's sockets out of that selector.
    global _loop, _lock
    _of_parents.append(_loop)
    _loop, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_loop)
