"""Keep models loaded for a while after their last user, for programs that soon load them again."""

import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple
from weakref import finalize

from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.local.engine import Engine, before_exit

MAX_KEPT = 2
"""An embedder and a reranker; if there are more, the last ones are kept."""


class Kept(NamedTuple):
    """A model's engine, and the time until which it is kept; None: the model is released."""

    model: str
    engine: Engine | None
    end: float


_lock = Lock()
_changes: SimpleQueue[Kept | None] | None = None


def keep_alive(user: object, engine: Engine, seconds: float) -> "finalize[[Engine, float], object]":
    """Hold the engine for some seconds after its user is collected; `detach()` revokes this."""
    global _changes
    with _lock:
        if _changes is None:
            changes: SimpleQueue[Kept | None] = SimpleQueue()
            worker = threading.Thread(
                target=_work, args=(changes,), name="bge-rerank-keep-alive", daemon=True
            )
            worker.start()
            before_exit(partial(_end, changes, worker))
            _changes = changes  # only now, or models would wait in it if no thread starts
    found = finalize(user, _keep, engine, seconds)
    found.atexit = False
    return found


def release(model: str) -> None:
    """Stop holding this model, whichever user held it."""
    if _changes is not None:
        _changes.put(Kept(model, None, 0.0))


def _keep(engine: Engine, seconds: float) -> None:
    # the garbage collector may call this at any point, so it takes no lock and starts no thread
    if _changes is not None:
        _changes.put(Kept(engine.model, engine, time.monotonic() + seconds))


def _work(changes: SimpleQueue[Kept | None]) -> None:
    kept: list[Kept] = []
    while True:
        next_end = min((entry.end for entry in kept), default=None)
        wait = None if next_end is None else max(0.0, next_end - time.monotonic())
        try:
            change = changes.get(timeout=wait)
        except Empty:
            kept = [entry for entry in kept if entry.end > time.monotonic()]
        else:
            if change is None:
                return
            kept = after(kept, change)
            del change  # holds an engine


def _end(changes: SimpleQueue[Kept | None], worker: threading.Thread) -> None:
    """End the thread: one that frees a model while the interpreter ends would abort the process."""
    if worker.is_alive():  # it does not exist in a forked child
        changes.put(None)
        worker.join()


def after(kept: Sequence[Kept], change: Kept) -> list[Kept]:
    """The models that stay loaded after a change."""
    others = [entry for entry in kept if entry.model != change.model]
    return others if change.engine is None else [*others, change][-MAX_KEPT:]


def _forget() -> None:
    global _changes
    _changes = None  # its thread does not exist in a forked child


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget)
