"""Locks and computed attributes that a process may fork away from.

A child has only the thread that forked. A lock that another thread held stays locked there for
ever, unless it is made anew.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Lock:
    """A lock for `with` that is free in a forked child, whoever held it in the parent."""

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


if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_locks)


class cached_property(Generic[T]):  # noqa: N801  # stands for functools' own
    """`functools.cached_property` without the lock that it has before Python 3.12.

    That one is shared by all objects of the class. Two threads may compute the value at once; the
    first value stays.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # of the class, where nobody computes with it
        value: T = vars(instance).setdefault(self._name, self._compute(instance))
        return value
