"""One engine in the process for all who ask for the same model in the same way."""

import os
import threading
from collections.abc import Callable, Hashable
from weakref import WeakValueDictionary

from bge_rerank_integrations.local.engine import Engine

_engines: WeakValueDictionary[Hashable, Engine] = WeakValueDictionary()
_loading: dict[Hashable, threading.Lock] = {}
_lock = threading.Lock()


def shared_engine(key: Hashable, load: Callable[[], Engine]) -> Engine:
    """The process's engine for `key`, loaded by the first that asks while the others wait.

    Held weakly: it goes when its last user does.
    """
    key = (os.getpid(), key)
    with _lock:
        engine = _engines.get(key)
        turn = _loading.setdefault(key, threading.Lock())
    if engine is not None:
        return engine
    with turn:
        with _lock:
            engine = _engines.get(key)
        if engine is None:
            engine = load()
            with _lock:
                _engines[key] = engine
        return engine


def _forget_locks() -> None:
    global _lock
    _lock = threading.Lock()
    _loading.clear()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget_locks)
