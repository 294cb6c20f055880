"""Scores in one SQLite file, shared by any number of threads and processes.

Each call opens and closes the file, so no connection crosses a thread or a fork. A fork waits until
no thread is inside SQLite, whose locks would stay locked in the child; if the wait ends too early,
the child goes on without the cache. The file is not synced to disk, because losing it costs only
time. Each score has a checksum, so a damaged one is not used.
"""

import hashlib
import logging
import math
import os
import sqlite3
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.base.fork import forked_in_native_code, native_code
from bge_rerank_integrations.base.option_group import count_from
from bge_rerank_integrations.errors import InvalidInputError

logger = logging.getLogger("bge_rerank_integrations")

APPLICATION_ID = 0x62676572
"""Written to the file's header, so that no other program's database is modified."""

VERSION = 1
PAGE_BYTES = 4096
MIN_BYTES = 2**20
ROWS_PER_TRANSACTION = 500
LOCK_WAIT_SECONDS = 2.0
"""How long a call waits for a file that another process has locked, before it goes on without."""

LOCK_PATIENCE_SECONDS = 30.0
"""After such a wait, calls do not wait for the file again for this long."""

TABLE = """CREATE TABLE scores (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, score BLOB NOT NULL
)"""
OURS = [
    (APPLICATION_ID, VERSION, "scores", "table", TABLE),
    (APPLICATION_ID, VERSION, "sqlite_autoindex_scores_1", "index", None),
]
SCORE = struct.Struct("<f")
CHECKSUM_BYTES = 8
MIN_DATABASE_BYTES = 512
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""UnicodeDecodeError: SQLite's message may quote a damaged file."""

LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class SqliteStore:
    """Scores in the file at `path`, which is created if needed, up to `max_bytes`.

    When the file is full, its oldest quarter is deleted; a pair takes about 100 bytes. Any failure
    is logged once, and scoring continues: a file that another process has locked is skipped for
    this call; a file that is damaged, unreadable or not ours is not used any more; a file that
    cannot be written is only read. Raises `InvalidInputError` for `max_bytes` below 1 MiB and for a
    path with a NUL character.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = 2**30) -> None:
        self._max_bytes = count_from(MIN_BYTES, max_bytes, "max_bytes")
        if "\0" in os.fspath(path):
            raise InvalidInputError(f"the score cache's path {path!r} has a NUL character")
        self._path = os.path.abspath(path)  # noqa: PTH100 - the working directory may change
        self._reads = self._writes = True
        self._warned = False
        self._no_wait_until = -math.inf

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r}, max_bytes={self._max_bytes})"

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        if not self._reads:
            return found
        damaged = 0
        with self._failures_logged(writing=False), self._open() as database:
            if not _is_ours(database):
                return found
            for key in keys:
                if seconds_left() == 0:
                    break
                for (packed,) in database.execute("SELECT score FROM scores WHERE key = ?", [key]):
                    if (score := _unpack(key, packed)) is None:
                        damaged += 1
                    else:
                        found[key] = score
        if damaged:
            self._warn(f"{damaged} of its scores are damaged", "is read without them")
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        if not self._writes:
            return
        rows = [(key, _pack(key, score)) for key, score in scores.items()]
        with self._failures_logged(writing=True), self._open() as database:
            _create(database)
            for start in range(0, len(rows), ROWS_PER_TRANSACTION):
                if seconds_left() == 0:
                    break
                _insert(database, rows[start : start + ROWS_PER_TRANSACTION])

    @contextmanager
    def _failures_logged(self, *, writing: bool) -> Iterator[None]:
        try:
            yield
        except DATABASE_ERRORS as error:
            if _code(error) in LOCKED:
                self._no_wait_until = time.monotonic() + LOCK_PATIENCE_SECONDS
            else:
                self._writes, self._reads = False, self._reads and writing
            self._warn(error, "cannot be written" if writing else "cannot be read")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if forked_in_native_code():
            raise sqlite3.OperationalError("this process was forked while another thread used it")
        _check_file(self._path)
        patience = LOCK_WAIT_SECONDS if time.monotonic() >= self._no_wait_until else 0.0
        left = seconds_left()
        wait = patience if left is None else min(patience, left)
        with (
            native_code(),
            closing(sqlite3.connect(self._path, timeout=wait, isolation_level=None)) as database,
        ):
            database.execute("PRAGMA synchronous = OFF")
            database.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # has an effect on a new file only
            (page,) = database.execute("PRAGMA page_size").fetchone()
            database.execute(f"PRAGMA max_page_count = {self._max_bytes // page}")
            yield database

    def _warn(self, reason: object, effect: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the score cache %s %s (%s); scoring continues and computes missing scores. If "
                "this does not pass, give another path. Logged once per cache",
                self._path,
                effect,
                reason,
            )


def _check_file(path: str) -> None:
    """Raise for a pipe or device, and for a file so short that SQLite would take it for empty.

    The file is not opened: closing it would free the locks that other threads have on it (POSIX).
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a path as text, as SQLite takes it
    except OSError:
        return  # SQLite creates the file, or reports why it cannot
    if stat.S_ISDIR(found.st_mode):
        return  # SQLite reports it
    if not stat.S_ISREG(found.st_mode) or 0 < found.st_size < MIN_DATABASE_BYTES:
        raise sqlite3.DatabaseError("file is not a database")


def _is_ours(database: sqlite3.Connection) -> bool:
    """True if the file has our table and nothing else, False if it is empty; raises otherwise."""
    # one query, because another process may create the table between two
    rows = database.execute(
        "SELECT application_id, user_version, name, type, sql "
        "FROM pragma_application_id, pragma_user_version LEFT JOIN sqlite_master "
        "ORDER BY name LIMIT 3"
    ).fetchall()
    if rows == OURS:
        return True
    if rows != [(0, 0, None, None, None)]:
        raise sqlite3.DatabaseError(
            "it is a database of something else, or of another version of this package"
        )
    return False


def _create(database: sqlite3.Connection) -> None:
    if _is_ours(database):
        return
    with database:
        database.execute("BEGIN IMMEDIATE")
        if not _is_ours(database):  # another process may have been faster
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute(TABLE)


def _insert(database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
    """Write the rows; if the file is full, delete its oldest quarter first, at most twice."""
    for quarters_left in (2, 1, 0):
        try:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    "INSERT OR REPLACE INTO scores (key, score) VALUES (?, ?)", rows
                )
        except sqlite3.Error as error:
            if _code(error) != sqlite3.SQLITE_FULL or not quarters_left:
                raise
        else:
            return
        database.execute(
            "DELETE FROM scores WHERE number <= "
            "(SELECT min(number) + (max(number) - min(number)) / 4 FROM scores)"
        )


def _pack(key: bytes, score: float) -> bytes:
    packed = SCORE.pack(score)
    return packed + hashlib.blake2b(key + packed, digest_size=CHECKSUM_BYTES).digest()


def _unpack(key: bytes, packed: object) -> float | None:
    """The score; None if it is not finite, or key, score and checksum do not match."""
    if not isinstance(packed, bytes) or len(packed) != SCORE.size + CHECKSUM_BYTES:
        return None
    score: float
    (score,) = SCORE.unpack(packed[: SCORE.size])
    return score if math.isfinite(score) and packed == _pack(key, score) else None


def _code(error: Exception) -> int | None:
    """SQLite's primary result code; None for other errors."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # the upper bits of an extended code are details
