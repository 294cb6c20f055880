"""Locks and computed attributes that are safe in a forked process.

A child process has only the thread that forked. A lock that another thread held stays locked there
forever, unless it is replaced. Locks inside libraries cannot be, so forks wait for `native_code`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Lock:
    """A lock for `with` that is free in a forked child, even if the parent had locked it."""

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_locks: WeakSet[Lock] = WeakSet()


def _renew_locks() -> None:
    for lock in list(_locks):
        lock.renew()


FORK_PATIENCE_SECONDS = 10.0
"""The longest time that a fork waits for other threads."""

_inside: set[int] = set()
_forking = _forked_inside = False


@contextmanager
def native_code() -> Iterator[None]:
    """Run a library that has locks of its own; no other thread forks in the meantime.

    A fork waits at most `FORK_PATIENCE_SECONDS`: see `forked_in_native_code`.
    """
    thread = threading.get_ident()
    if thread in _inside:
        yield
        return
    try:
        _inside.add(thread)
        while _forking:
            _inside.discard(thread)
            time.sleep(0.001)
            _inside.add(thread)
        yield
    finally:
        _inside.discard(thread)


def forked_in_native_code() -> bool:
    """Whether a library's locks may stay locked, because their threads are not in this process."""
    return _forked_inside


def _wait_for_native_code() -> None:
    global _forking
    _forking = True
    end = time.monotonic() + FORK_PATIENCE_SECONDS
    while _inside - {threading.get_ident()} and time.monotonic() < end:
        time.sleep(0.001)


def _after_fork_in_parent() -> None:
    global _forking
    _forking = False


def _after_fork_in_child() -> None:
    global _forking, _forked_inside
    _forked_inside = _forked_inside or bool(_inside - {threading.get_ident()})
    _forking = False
    _inside.clear()
    _renew_locks()


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(
        before=_wait_for_native_code,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class cached_property(Generic[T]):  # noqa: N801  # named like functools' own
    """`functools.cached_property` without the lock that it has before Python 3.12.

    All objects of a class share that lock. Here two threads may compute the value at once; the
    first value stays.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # read from the class
        value: T = vars(instance).setdefault(self._name, self._compute(instance))
        return value
