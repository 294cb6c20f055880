"""The output folder. A shard is done once its file is in `results` under its final name.

manifest.json            the input's SHA-256, the columns and the size of a shard
scorer.json              the name of the scorer
results/part-*.parquet   a shard's scored rows, possibly none
errors/part-*.parquet    its rows that could not be scored, if any
scratch/                 unfinished files and attempts, while a run is going on
lock                     held by the run
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_rerank_integrations.errors import InvalidInputError

FORMAT = 1


class ResultFolder:
    """An output folder to which any number of workers of one run write whole shards.

    It must be on a file system that all workers share, with hard links and atomic renames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # each run has its own, so that workers of a killed run cannot disturb the next one
        self._scratch = folder / "scratch" / uuid.uuid4().hex

    @contextlib.contextmanager
    def opened(self, manifest: Mapping[str, Any]) -> Iterator[None]:
        """Create the folder for this manifest or resume it, and lock it against other runs.

        The lock ends with this process at the latest. Raises `InvalidInputError` if the folder was
        created for another manifest, has other content, or is in use.
        """
        import fcntl  # absent on Windows, where Ray clusters do not run

        file = self.folder / "manifest.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file() and any(path.name != "lock" for path in self.folder.iterdir()):
            raise InvalidInputError(
                f"{self.folder} is not empty and has no run to resume; use a new folder"
            )
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInputError(
                    f"another run is writing to {self.folder}; wait for it, or stop it"
                ) from None
            # a worker of a killed run may still be writing there
            shutil.rmtree(self.folder / "scratch", ignore_errors=True)
            try:
                for place in (self.folder / "results", self.folder / "errors", self._scratch):
                    place.mkdir(parents=True, exist_ok=True)
                self._claim(file, {"format": FORMAT, **manifest})
                yield
            finally:
                shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    def claim_scorer(self, name: str, scale: str) -> None:
        """Record the scorer; raises `InvalidInputError` if another one was recorded first."""
        self._claim(self.folder / "scorer.json", {"name": name, "scale": scale})

    def scorer_name(self) -> str:
        """The recorded name of the scorer."""
        name: str = json.loads((self.folder / "scorer.json").read_text(encoding="utf-8"))["name"]
        return name

    def is_done(self, shard: int) -> bool:
        return self._part("results", shard).is_file()

    def attempts_file(self, shard: int) -> Path:
        return self._scratch / f"shard-{shard:07d}.json"

    def commit(self, shard: int, scored: pa.Table, failed: pa.Table) -> None:
        """Write a shard's rows: the errors first, because the results mark it as done."""
        errors = self._part("errors", shard)
        errors.unlink(missing_ok=True)
        for table, file in ((failed, errors), (scored, self._part("results", shard))):
            if table.num_rows or table is scored:
                with self._unfinished() as unfinished:
                    pq.write_table(table, unfinished)
                    _sync(unfinished)
                    unfinished.replace(file)
                _sync(file.parent)

    def failed_rows(self) -> int:
        """The number of rows in `errors`."""
        parts = (self.folder / "errors").glob("part-*.parquet")
        return sum(pq.read_metadata(part).num_rows for part in parts)

    def _part(self, kind: str, shard: int) -> Path:
        return self.folder / kind / f"part-{shard:07d}.parquet"

    def _claim(self, file: Path, wanted: dict[str, Any]) -> None:
        """Create `file` with this content, or check that it has it."""
        with self._unfinished() as unfinished:
            text = json.dumps(wanted, ensure_ascii=False, indent=2)
            unfinished.write_text(text, encoding="utf-8")
            _sync(unfinished)
            with contextlib.suppress(FileExistsError):
                os.link(unfinished, file)  # unlike a rename, it fails if another was first
        found = json.loads(file.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if found.get(key) != value:
                raise InvalidInputError(
                    f"{self.folder} was created with another {key}: {found.get(key)!r} is in its "
                    f"{file.name}, and this run has {value!r}; use a new folder"
                )

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A file to write; it is removed unless it was renamed."""
        # unlike tempfile's, the file gets normal permissions
        unfinished = self._scratch / uuid.uuid4().hex
        try:
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
