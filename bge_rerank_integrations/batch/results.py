"""The output folder. A shard is done once its file is in `results` under its final name.

manifest.json            the input's SHA-256, the columns and the size of a shard
scorer.json              the name of the scorer
results/part-*.parquet   a shard's scored rows, possibly none
errors/part-*.parquet    its rows that could not be scored, if any
attempts/                the rows that are being scored
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
    """An output folder to which any number of workers write whole shards.

    It must be on a file system that all workers share, with hard links and atomic renames.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Create the folder for this manifest, or resume it.

        Raises `InvalidInputError` if it was created for another manifest, or has other content.
        """
        file = self.folder / "manifest.json"
        if self.folder.is_dir() and any(self.folder.iterdir()) and not file.is_file():
            raise InvalidInputError(
                f"{self.folder} is not empty and has no run to resume; use a new folder"
            )
        for name in ("results", "errors", "attempts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._claim(file, {"format": FORMAT, **manifest})

    def claim_scorer(self, name: str, scale: str) -> None:
        """Record the scorer; raises `InvalidInputError` if another one was recorded first."""
        self._claim(self.folder / "scorer.json", {"name": name, "scale": scale})

    def scorer_name(self) -> str:
        """The recorded name of the scorer."""
        name: str = json.loads((self.folder / "scorer.json").read_text(encoding="utf-8"))["name"]
        return name

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder against other runs; the lock ends with this process at the latest."""
        import fcntl  # absent on Windows, where Ray clusters do not run

        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInputError(
                    f"another run is writing to {self.folder}; wait for it, or stop it"
                ) from None
            yield

    def done(self) -> set[int]:
        """The numbers of the shards that are done."""
        parts = (self.folder / "results").glob("part-*.parquet")
        return {int(part.stem.removeprefix("part-")) for part in parts}

    def is_done(self, shard: int) -> bool:
        return self._part("results", shard).is_file()

    def attempts_file(self, shard: int) -> Path:
        return self.folder / "attempts" / f"shard-{shard:07d}.json"

    def commit(self, shard: int, scored: pa.Table, failed: pa.Table) -> None:
        """Write a shard's rows: the errors first, because the results mark it as done."""
        errors = self._part("errors", shard)
        if failed.num_rows:
            replace_file(errors, failed, sync=True)
        else:
            errors.unlink(missing_ok=True)
        replace_file(self._part("results", shard), scored, sync=True)

    def failed_rows(self) -> int:
        """The number of rows in `errors`."""
        parts = (self.folder / "errors").glob("part-*.parquet")
        return sum(pq.read_metadata(part).num_rows for part in parts)

    def tidy(self) -> None:
        """Remove unfinished files of killed workers; call it only while no worker is running."""
        for name in ("results", "errors", "attempts"):
            for left in (self.folder / name).glob(f"*{_UNFINISHED}"):
                left.unlink(missing_ok=True)

    def _part(self, kind: str, shard: int) -> Path:
        return self.folder / kind / f"part-{shard:07d}.parquet"

    def _claim(self, file: Path, wanted: dict[str, Any]) -> None:
        """Create `file` with this content, or check that it has it."""
        whole = _unfinished(file)
        try:
            whole.write_text(json.dumps(wanted, ensure_ascii=False, indent=2), encoding="utf-8")
            _sync(whole)
            with contextlib.suppress(FileExistsError):
                os.link(whole, file)  # unlike a rename, it fails if another was first
        finally:
            whole.unlink()
        found = json.loads(file.read_text(encoding="utf-8"))
        for key, value in wanted.items():
            if found.get(key) != value:
                raise InvalidInputError(
                    f"{self.folder} was created with another {key}: {found.get(key)!r} is in its "
                    f"{file.name}, and this run has {value!r}; use a new folder"
                )


def replace_file(file: Path, content: bytes | pa.Table, *, sync: bool) -> None:
    """Replace `file` atomically by these bytes, or by this table as Parquet."""
    unfinished = _unfinished(file)
    try:
        if isinstance(content, bytes):
            unfinished.write_bytes(content)
        else:
            pq.write_table(content, unfinished)
        if sync:
            _sync(unfinished)
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if sync:
        _sync(file.parent)


def _unfinished(file: Path) -> Path:
    # unlike tempfile's, the file gets normal permissions
    return file.with_name(f"{file.stem}.{uuid.uuid4().hex}{_UNFINISHED}")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
