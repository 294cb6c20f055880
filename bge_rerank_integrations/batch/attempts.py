"""A record of the rows being scored, so that the death of a worker can be traced to a row.

Each shard being scored has a file; the shard's results replace it. After a worker dies, the rows it
was scoring are scored one by one. A row that two workers died of, alone, is not tried again.
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
"""Ten rows of a shard at three deaths each; beyond that, the machine is at fault, not the rows."""


@dataclass(slots=True)
class _Record:
    """The file's content: the rows being scored, and the history of the shard."""

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
    """The attempts to score one shard within one run; a new run starts from zero.

    Raises `RerankError` if workers die so often that no single row can be the cause.
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
            self._count_death(shard)

    def begin_load(self) -> None:
        """The model is about to be loaded."""
        self._write(0, 0, loading=True)

    def begin(self, start: int, stop: int) -> None:
        """Rows `start` to `stop` (exclusive) of the shard are about to be scored."""
        self._write(start, stop, loading=False)

    def raised(self, error: str) -> None:
        """The current rows raised an error of this class, which no scorer should raise."""
        self._record.raised = error
        self._save()

    def is_suspect(self, place: int) -> bool:
        """Whether this row must be scored alone."""
        return place in self._record.suspects

    def hopeless(self, place: int) -> tuple[str, str] | None:
        """The error's class and message for a row that is not tried again, else None."""
        causes = self._record.alone.get(str(place), [])
        if len(causes) < DEATHS_OF_A_ROW:
            return None
        if causes[-1]:
            return causes[-1], f"raised {len(causes)} times while this row was scored alone"
        return "WorkerDied", f"{len(causes)} workers died while they scored this row alone"

    def finished(self) -> None:
        """The shard's results are written."""
        self._file.unlink(missing_ok=True)

    def _count_death(self, shard: int) -> None:
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
                f"{record.deaths_loading} workers died while they loaded the model, most likely of "
                "too little memory: use fewer workers per machine, or larger machines"
            )
        if record.deaths >= DEATHS_OF_A_SHARD:
            last = f", last with {cause}" if cause else ""
            raise RerankError(
                f"workers died or failed {record.deaths} times in shard {shard}{last}: too often "
                "to be caused by its rows; fix the worker, then rerun to resume"
            )

    def _write(self, start: int, stop: int, *, loading: bool) -> None:
        self._record.start, self._record.stop, self._record.loading = start, stop, loading
        self._save()

    def _save(self) -> None:
        # without fsync: if the machine dies, the run ends too
        replace_file(self._file, json.dumps(asdict(self._record)).encode(), sync=False)
