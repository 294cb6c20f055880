"""Scorers that workers load by name, and that some passages are bad for.

All of them count shared words (`tests.fakes`), so every score can be checked by eye.
"""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bge_rerank_integrations.types import FloatArray, Pair
from tests.fakes import WordOverlapScorer


class BadPassageScorer(WordOverlapScorer):
    """Shared words, except for passages that begin with one of these words.

    "segfault" ends the process as a fault in native code does, "raise" raises what no scorer
    should, with the passage in the message, "nan" has no finite score, and "wait" waits for the
    test at its gate, a folder of two pipes.
    """

    def __init__(self, gate: str | None = None, name: str = "word-overlap") -> None:
        super().__init__(name)
        self._gate = gate

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        scores = super().score(pairs)
        for place, (_, passage) in enumerate(pairs):
            first = passage.partition(" ")[0]
            if first == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
                signal.pause()  # another thread may be the one that gets the signal
            if first == "raise":
                raise RuntimeError(f"cannot read {passage}")
            if first == "nan":
                scores[place] = np.nan
            if first == "wait" and self._gate is not None:
                wait_at_gate(Path(self._gate))
        return scores


def wait_at_gate(gate: Path) -> None:
    """Say which process this is, and wait to be let through (or killed)."""
    (gate / "who").write_text(f"{os.getpid()}\n")
    (gate / "go").read_text()


def load_overlap(gate: str | None) -> WordOverlapScorer:
    return BadPassageScorer(gate)


def load_other(gate: str | None) -> WordOverlapScorer:
    return BadPassageScorer(gate, "another")


def load_nothing(gate: str | None) -> object:
    return object()


def load_and_die(gate: str | None) -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def fail_to_load() -> object:
    raise LookupError("the loader is not on this machine")


class Unreadable:
    """A loader that cannot be unpickled where the worker runs."""

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return fail_to_load, ()

    def __call__(self, gate: str | None) -> object:
        raise AssertionError("not reached")


LOADERS: dict[str, Callable[[str | None], object]] = {
    "overlap": load_overlap,
    "other": load_other,
    "nothing": load_nothing,
    "die": load_and_die,
    "unreadable": Unreadable(),
}
