"""What is being scored, written down before it is, so that a dead worker's successor knows.

A file for each shard in work; the shard's results take its place. A death says only that one of
the rows then in work may be to blame, or none: those are next tried one by one, and a row that
two workers died of, alone, is not tried a third time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bge_rerank_integrations.batch.results import replace_file
from bge_rerank_integrations.errors import RerankError

DEATHS_OF_A_ROW = 2
DEATHS_OF_A_LOAD = 3
DEATHS_OF_A_SHARD = 30
"""Ten rows of a shard at three deaths each; beyond that it is the machine, not the rows."""


@dataclass(slots=True)
class _Record:
    """What the file holds: the rows in work, and what is known of earlier attempts."""

    run: str
    start: int = 0
    stop: int = 0
    loading: bool = False
    raised: str | None = None
    deaths: int = 0
    deaths_loading: int = 0
    suspects: list[int] = field(default_factory=list)
    alone: dict[str, list[str]] = field(default_factory=dict)


class Attempts:
    """The attempts to score one shard within one run; a run begun anew counts anew.

    Raises `RerankError` where workers die so often that no single row can be to blame.
    """

    def __init__(self, file: Path, *, run: str, shard: int) -> None:
        self._file = file
        self._record = _Record(run)
        try:
            left = _Record(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        if left.run == run:
            self._record = left
            self._take_up(shard)

    def begin_load(self) -> None:
        """The model is about to be loaded."""
        self._write(0, 0, loading=True)

    def begin(self, start: int, stop: int) -> None:
        """The shard's rows from `start` to before `stop` are about to be scored."""
        self._write(start, stop, loading=False)

    def raised(self, error: str) -> None:
        """The rows in work raised an error of this class, which no scorer should."""
        self._record.raised = error
        self._replace()

    def is_suspect(self, place: int) -> bool:
        """Whether this row is to be scored by itself."""
        return place in self._record.suspects

    def hopeless(self, place: int) -> tuple[str, str] | None:
        """An error's class and message for a row that has cost enough workers; else None."""
        causes = self._record.alone.get(str(place), [])
        if len(causes) < DEATHS_OF_A_ROW:
            return None
        if causes[-1]:
            return causes[-1], f"raised {len(causes)} times while this row was scored alone"
        return "WorkerDied", f"{len(causes)} workers died while they scored this row alone"

    def finished(self) -> None:
        """The shard's results are written: nothing of it is in work any more."""
        self._file.unlink(missing_ok=True)

    def _take_up(self, shard: int) -> None:
        record = self._record
        record.deaths += 1
        cause, record.raised = record.raised or "", None
        if record.loading:
            record.deaths_loading += 1
        elif record.stop - record.start == 1:
            record.alone.setdefault(str(record.start), []).append(cause)
        record.suspects = sorted({*record.suspects, *range(record.start, record.stop)})
        if record.deaths_loading >= DEATHS_OF_A_LOAD:
            raise RerankError(
                f"{record.deaths_loading} workers died while they loaded the model; most often "
                "memory ran out: give each worker more, or use fewer workers on a machine"
            )
        if record.deaths >= DEATHS_OF_A_SHARD:
            raise RerankError(
                f"workers died or failed {record.deaths} times in shard {shard}"
                f"{f', last with {cause}' if cause else ''}: too often for its rows to be to "
                "blame; mend the machine or the model and start the same run again"
            )

    def _write(self, start: int, stop: int, *, loading: bool) -> None:
        self._record.start, self._record.stop, self._record.loading = start, stop, loading
        self._replace()

    def _replace(self) -> None:
        # no fsync: a worker's death loses nothing that the system has, and with the machine's
        # death the run ends too
        replace_file(self._file, json.dumps(asdict(self._record)).encode(), sync=False)
