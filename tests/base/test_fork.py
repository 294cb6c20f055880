"""Locks that a thread of the parent holds at the moment of a fork."""

import threading
from collections.abc import Callable

import pytest

from bge_rerank_integrations.base import fork
from bge_rerank_integrations.base.fork import (
    Lock,
    cached_property,
    forked_in_native_code,
    native_code,
)
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.base.forking import in_child
from tests.fakes import WordOverlapScorer


class Slow:
    """An attribute that one thread computes while another forks."""

    def __init__(self) -> None:
        self.computing, self.forked = threading.Event(), threading.Event()

    @cached_property
    def value(self) -> str:
        """Waits only in the first thread."""
        if not self.computing.is_set():
            self.computing.set()
            self.forked.wait(60)
        return "computed"


def test_a_child_computes_what_a_thread_of_the_parent_was_computing() -> None:
    slow = Slow()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    slow.computing.wait(60)
    assert in_child(lambda: Slow.__dict__["value"].__get__(slow, Slow)) == "computed"
    slow.forked.set()
    thread.join()
    assert vars(slow)["value"] == slow.value == "computed"
    assert Slow.value.__doc__ == "Waits only in the first thread."


def forked_while_held(lock: Lock, call: Callable[[], str]) -> str:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        return in_child(call)
    finally:
        done.set()
        thread.join()


def test_a_lock_is_free_in_a_child() -> None:
    lock = Lock()

    def take() -> str:
        with lock:
            return "taken"

    assert forked_while_held(lock, take) == "taken"
    assert take() == "taken"


def test_a_child_scores_while_a_thread_of_the_parent_holds_the_cache() -> None:
    store = MemoryStore()
    scorer = CachedScorer(WordOverlapScorer(), store)
    call = lambda: str(scorer.score([("red fox", "a red fox")]).tolist())  # noqa: E731
    assert forked_while_held(store._lock, call) == "[2.0]"


def test_an_error_in_the_block_frees_the_lock() -> None:
    lock = Lock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:
        pass


def test_a_fork_waits_until_no_thread_is_in_a_library() -> None:
    lock = threading.Lock()  # a library's, which nothing can free in a child
    entered = threading.Event()

    def compute() -> None:
        with native_code(), native_code(), lock:
            entered.set()
            while not fork._forking:
                entered.wait(0.001)

    thread = threading.Thread(target=compute)
    thread.start()
    entered.wait(60)
    assert in_child(lambda: f"{lock.acquire(blocking=False)} {forked_in_native_code()}") == (
        "True False"
    )
    thread.join()
    with native_code(), lock:
        pass


def test_a_fork_does_not_wait_for_ever_nor_for_its_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork, "FORK_PATIENCE_SECONDS", 0.01)
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with native_code():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=compute)
    with native_code():
        assert in_child(lambda: str(forked_in_native_code())) == "False"
    thread.start()
    entered.wait(60)
    try:
        assert in_child(lambda: str(forked_in_native_code())) == "True"
    finally:
        leave.set()
        thread.join()
    assert not forked_in_native_code()
