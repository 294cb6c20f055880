"""A record of the rows being scored, so that the death of a worker can be traced to a row.

Each shard being scored has a file. After a worker dies, the rows it was scoring are scored one by
one. A row that killed three workers is not tried again.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from pydantic import BaseModel, Field

from bge_rerank_integrations.errors import RerankError

DEATHS_OF_A_ROW = 3
DEATHS_OF_A_LOAD = 3
DEATHS_OF_A_SHARD = 30
"""Ten rows of a shard at three deaths each; beyond that, the machine is at fault, not the rows."""


class Attempts(BaseModel):
    """The attempts to score one shard; rows `start` to `stop` are being scored, if any."""

    file: Path = Field(exclude=True)
    start: int = 0
    stop: int = 0
    deaths: int = 0
    loading: int = 0
    """The number of workers that died while they loaded the model."""
    rows: dict[int, int] = {}
    """The number of workers that died of each row: first with others, then alone."""

    @classmethod
    def read(cls, file: Path, *, shard: int) -> Attempts:
        """The attempts so far; an existing file was left by a worker that died.

        Raises `RerankError` if workers died so often that no single row can be the cause.
        """
        try:
            left = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(file=file)
        attempts = cls(file=file, **left)
        attempts.deaths += 1
        attempts.loading += attempts.start == attempts.stop
        for place in range(attempts.start, attempts.stop):
            attempts.rows[place] = attempts.rows.get(place, 0) + 1
        if attempts.loading >= DEATHS_OF_A_LOAD:
            raise RerankError(
                f"{attempts.loading} workers died while they loaded the model, most likely of too "
                "little memory: use fewer workers per machine, or larger machines"
            )
        if attempts.deaths >= DEATHS_OF_A_SHARD:
            raise RerankError(
                f"workers died {attempts.deaths} times in shard {shard}: too often to be caused by "
                "its rows; fix the worker, then rerun to resume"
            )
        return attempts

    def begin(self, start: int, stop: int) -> None:
        """Record that these rows are about to be scored, or with 0 and 0 that the model loads."""
        self.start, self.stop = start, stop
        # without fsync: if the machine dies, the run ends too
        unfinished = self.file.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(self.model_dump_json(), encoding="utf-8")
        unfinished.replace(self.file)

    def is_hopeless(self, place: int) -> bool:
        """Whether the row is not tried again."""
        return self.rows.get(place, 0) >= DEATHS_OF_A_ROW
