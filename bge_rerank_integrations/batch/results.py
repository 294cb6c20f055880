"""The folder of results: what is done is there under its final name, and nothing else counts.

manifest.json         the input's SHA-256, the columns and the size of a shard
scorer.json           the name of the scorer that all scores are of
results/part-*.parquet   a shard's scored rows; there once the shard is done, maybe without rows
errors/part-*.parquet    its rows that could not be scored, where there are any
attempts/             which rows are being scored just now
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_rerank_integrations.errors import InvalidInputError

FORMAT = 1
_UNFINISHED = ".unfinished"


class ResultFolder:
    """A folder that shards are written to, each whole or not at all, by any number of workers.

    It must be on a file system that all workers see, with atomic renames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Begin the folder for this manifest, or go on with it.

        Raises `InvalidInputError` if it was begun for another, or holds something else.
        """
        file = self.folder / "manifest.json"
        if self.folder.is_dir() and any(self.folder.iterdir()) and not file.is_file():
            raise InvalidInputError(
                f"{self.folder} is not empty and holds no run to go on with; name a new folder"
            )
        for name in ("results", "errors", "attempts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._claim(file, {"format": FORMAT, **manifest})

    def claim_scorer(self, name: str, scale: str) -> None:
        """Say of which scorer the scores are; the first worker to say so decides.

        Raises `InvalidInputError` if they are another's.
        """
        self._claim(self.folder / "scorer.json", {"name": name, "scale": scale})

    def scorer_name(self) -> str:
        """The name of the scorer that the scores are of."""
        name: str = json.loads((self.folder / "scorer.json").read_text(encoding="utf-8"))["name"]
        return name

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of this folder; the system ends it with this process."""
        import fcntl  # absent on Windows, where Ray's clusters do not run

        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInputError(
                    f"another run is writing to {self.folder}; wait for it, or end it first"
                ) from None
            yield

    def done(self) -> set[int]:
        """The numbers of the shards whose results are there."""
        parts = (self.folder / "results").glob("part-*.parquet")
        return {int(part.stem.removeprefix("part-")) for part in parts}

    def is_done(self, shard: int) -> bool:
        return self._part("results", shard).is_file()

    def attempts_file(self, shard: int) -> Path:
        return self.folder / "attempts" / f"shard-{shard:07d}.json"

    def commit(self, shard: int, scored: pa.Table, failed: pa.Table) -> None:
        """Write a shard's rows: the errors first, for the results say that it is done."""
        errors = self._part("errors", shard)
        if failed.num_rows:
            _replace_table(errors, failed)
        else:
            errors.unlink(missing_ok=True)
        _replace_table(self._part("results", shard), scored)

    def failed_rows(self) -> int:
        """How many rows the errors hold."""
        parts = (self.folder / "errors").glob("part-*.parquet")
        return sum(pq.read_metadata(part).num_rows for part in parts)

    def tidy(self) -> None:
        """Remove what killed workers left half written; only where no worker is running."""
        for name in ("results", "errors", "attempts"):
            for left in (self.folder / name).glob(f"*{_UNFINISHED}"):
                left.unlink(missing_ok=True)

    def _part(self, kind: str, shard: int) -> Path:
        return self.folder / kind / f"part-{shard:07d}.parquet"

    def _claim(self, file: Path, wanted: dict[str, Any]) -> None:
        """Make `file` say this, or find that it does."""
        whole = _unfinished(file)
        try:
            whole.write_text(json.dumps(wanted, ensure_ascii=False, indent=2), encoding="utf-8")
            _sync(whole)
            with contextlib.suppress(FileExistsError):
                os.link(whole, file)  # unlike a rename, fails where another was first
        finally:
            whole.unlink()
        found = json.loads(file.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if found.get(key) != value:
                raise InvalidInputError(
                    f"{self.folder} was begun with another {key}: {found.get(key)!r} is in its "
                    f"{file.name}, and this run has {value!r}; name a new folder"
                )


def replace_file(file: Path, content: bytes, *, sync: bool) -> None:
    """Give `file` this content, in one step for whoever reads it."""
    with _replacing(file, sync=sync) as unfinished:
        unfinished.write_bytes(content)


def _replace_table(file: Path, table: pa.Table) -> None:
    with _replacing(file, sync=True) as unfinished:
        pq.write_table(table, unfinished)


@contextlib.contextmanager
def _replacing(file: Path, *, sync: bool) -> Iterator[Path]:
    unfinished = _unfinished(file)
    try:
        yield unfinished
        if sync:
            _sync(unfinished)
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if sync:
        _sync(file.parent)


def _unfinished(file: Path) -> Path:
    # not tempfile's: its files can be read by nobody else, also under their final name
    return file.with_name(f"{file.stem}.{uuid.uuid4().hex}{_UNFINISHED}")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
