"""A record of one rerank: ranks, scores, the rule that decided the cut, and times.

A `Recorder` travels in a context variable, so that scorers that wrap scorers need not pass it on.
Without a listener nothing is recorded, and `note` only reads that variable. A trace contains no
text.
"""

import contextvars
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bge_rerank_integrations.base.html import html_table
from bge_rerank_integrations.types import FloatArray, RerankResult

Stage = Literal["tokenizing", "queueing", "computing"]
Count = Literal["computed", "cut", "windows", "cached", "sentences", "duplicates", "rescored"]

_recorder: contextvars.ContextVar["Recorder | None"] = contextvars.ContextVar(
    "recorder", default=None
)


@dataclass(frozen=True, slots=True)
class PassageTrace:
    """One passage: its rank before and after, from 0; `after` is None if it was not kept.

    The scores are None if the passage was not scored.
    """

    before: int
    after: int | None
    raw_score: float | None
    score: float | None


@dataclass(frozen=True, slots=True)
class RerankTrace:
    """One rerank, as plain data.

    `scale` is the scale of the raw scores, None without scores. `kept_by` is the rule that decided
    how many results were returned, None if all were. `failure` is the class of the error that
    `on_error="keep"` handled, `evidence_failure` that of an error that left passages without
    evidence.

    `counts` has the number of pairs that were computed, truncated, split into windows and found in
    a cache, of sentences that `explain` scored, which are also counted as pairs, of passages that
    `drop_duplicates` left out, and of pairs that `draft` scored twice. `seconds` has the "total",
    and the shares of tokenizing, waiting for the device, computing, and explaining, which includes
    the other three; times of parallel cores and devices are added up. `facts` are the scorers' own:
    model, device, precision, kernels.
    """

    passages: tuple[PassageTrace, ...]
    scale: str | None
    calibrated: bool
    kept_by: str | None
    failure: str | None
    evidence_failure: str | None
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    facts: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The trace as dictionaries, lists, numbers and strings, for JSON."""
        return {**asdict(self), "passages": [asdict(passage) for passage in self.passages]}

    def _repr_html_(self) -> str:
        """Tables for a notebook: the passages with ranks from 0, and everything else."""
        passages = [[p.before, p.after, p.score, p.raw_score] for p in self.passages]
        details = {
            "scale": self.scale,
            "calibrated": "yes" if self.calibrated else "no",
            "kept by": self.kept_by,
            "failure": self.failure,
            "evidence failure": self.evidence_failure,
            **self.counts,
            **{f"{stage}, seconds": seconds for stage, seconds in self.seconds.items()},
            **self.facts,
        }
        ranks = html_table(["before", "after", "score", "raw score"], passages)
        return ranks + html_table(["", ""], [row for row in details.items() if row[1] is not None])


@dataclass(slots=True)
class Recorder:
    """Holds what scorers note, from any number of threads."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    facts: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record what is noted inside; an outer recorder does not receive it."""
    recorder = Recorder()
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


def is_recorded() -> bool:
    """Whether a trace of the current rerank is recorded."""
    return _recorder.get() is not None


def note(counts: Mapping[Count, int], facts: Mapping[str, str] | None = None) -> None:
    """Add counts, and facts about the scorers, to the current rerank if it is recorded."""
    recorder = _recorder.get()
    if recorder is not None:
        with recorder.lock:
            recorder.counts.update(counts)
            recorder.facts.update(facts or {})


@contextmanager
def timed(stage: Stage) -> Iterator[None]:
    """Add the time that passes inside to a stage of the current rerank, if it is recorded.

    Stages do not nest. The times of parallel cores and devices can add up to more than the total.
    """
    recorder = _recorder.get()
    if recorder is None:
        yield
        return
    begin = time.perf_counter()
    try:
        yield
    finally:
        with recorder.lock:
            recorder.seconds[stage] += time.perf_counter() - begin


def class_name(error: BaseException | None) -> str | None:
    """The error's class; its message may contain an address."""
    return None if error is None else type(error).__name__


def passage_traces(
    raw: FloatArray, shown: Sequence[float], results: Sequence[RerankResult]
) -> tuple[PassageTrace, ...]:
    """Each passage of the caller's list, in order; `raw` is NaN if it was not scored."""
    after = {result.index: place for place, result in enumerate(results)}
    return tuple(
        PassageTrace(index, after.get(index), None, None)
        if math.isnan(number)
        else PassageTrace(index, after.get(index), number, shown[index])
        for index, number in enumerate(raw.tolist())
    )
