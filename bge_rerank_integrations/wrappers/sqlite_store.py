"""Scores in one SQLite file, for any number of threads and processes, forked ones too.

Each call opens the file and closes it again, so nothing is shared that a thread or a fork could
break. The file is not synced to the disk: a cache that goes with the power costs only time. Each
score carries a check, so one that was damaged is not read as another.
"""

import hashlib
import logging
import os
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.option_checks import whole_number

T = TypeVar("T")

logger = logging.getLogger("bge_rerank_integrations")

APPLICATION_ID = 0x62676572
"""In the file's header, so that we write into no other program's database."""

VERSION = 1
PAGE_BYTES = 4096
LEAST_BYTES = 2**20
ROWS_AT_ONCE = 500
WAIT_SECONDS = 2.0
"""How long another process may hold the file before a call goes on without it."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, score BLOB NOT NULL
)
"""
SCORE = struct.Struct("<f")
CHECK_BYTES = 8
LEAST_PAGE_BYTES = 512
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""The second where a message quotes a damaged file."""

BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class SqliteStore:
    """Scores in the file at `path`, which is made if it is not there, up to `max_bytes`.

    When the file is full the oldest quarter goes; a pair takes about 100 bytes. Of what goes wrong
    there is one warning in the log, and scoring goes on: past a file that another process holds for
    this once, without a file that is damaged, is not ours, or cannot be read; without writing where
    that fails. Raises `InvalidInputError` for `max_bytes` below 1 MiB.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = 2**30) -> None:
        most = whole_number(max_bytes)
        if most is None or most < LEAST_BYTES:
            raise InvalidInputError(
                f"max_bytes is {max_bytes!r}; it must be a whole number from {LEAST_BYTES}"
            )
        self._path = os.path.abspath(path)  # noqa: PTH100 - the folder may change, not the file
        self._max_bytes = most
        self._reads = self._writes = True
        self._warned = False

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r}, max_bytes={self._max_bytes})"

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        if not self._reads:
            return found
        damaged = 0
        try:
            with self._open() as database:
                with _transaction(database, "DEFERRED"):
                    if not _is_ours(database):
                        return found
                for key in keys:
                    row = database.execute("SELECT score FROM scores WHERE key = ?", [key])
                    for (checked,) in row:
                        score = _read_score(key, checked)
                        if score is None:
                            damaged += 1
                        else:
                            found[key] = score
        except DATABASE_ERRORS as error:
            if not _is_busy(error):
                self._reads = self._writes = False
            self._warn(error, "cannot be read")
        if damaged:
            self._warn(f"{damaged} of its scores are damaged", "is read without them")
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        if not self._writes:
            return
        rows = [(key, _checked_score(key, score)) for key, score in scores.items()]
        try:
            with self._open() as database:
                _prepare(database)
                for some in _chunks(rows):
                    _insert(database, some)
        except DATABASE_ERRORS as error:
            if not _is_busy(error):
                self._writes = False
            self._warn(error, "cannot be written")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        _check_size(self._path)
        left = seconds_left()
        wait = WAIT_SECONDS if left is None else min(WAIT_SECONDS, left)
        database = sqlite3.connect(self._path, timeout=wait, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = OFF")
            database.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file not yet begun
            (page,) = database.execute("PRAGMA page_size").fetchone()
            database.execute(f"PRAGMA max_page_count = {self._max_bytes // page}")
            yield database
        finally:
            database.close()

    def _warn(self, what: object, so: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the score cache %s %s (%s); scoring goes on and computes what is missing. If it "
                "is damaged, delete it. Said once for this cache",
                self._path,
                so,
                what,
            )


def _check_size(path: str) -> None:
    """Raise for a file too short to be a database, which SQLite would take for an empty one.

    It is not opened: closing it would free the locks that other threads have on it (POSIX).
    """
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - a path as text, as SQLite takes it
    except OSError:
        return  # SQLite says what is wrong, or makes the file
    if 0 < size < LEAST_PAGE_BYTES:
        raise sqlite3.DatabaseError("file is not a database")


def _is_ours(database: sqlite3.Connection) -> bool:
    """Whether the file holds scores; False if it is empty. Raises if it is something else.

    To be asked within a transaction: otherwise another process may begin the file between the
    questions, and the answers would not belong together.
    """
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if (application, version) == (APPLICATION_ID, VERSION):
        return True
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables or application or version:
        raise sqlite3.DatabaseError(
            "it is a database of something else, or of another version of this package"
        )
    return False


def _prepare(database: sqlite3.Connection) -> None:
    with _transaction(database, "DEFERRED"):
        if _is_ours(database):
            return
    with _transaction(database):
        if not _is_ours(database):  # another process may have been faster
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute(SCHEMA)


def _insert(database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
    """Write the rows; where the file is full, in place of the oldest quarter, tried twice."""
    quarters = 2
    while True:
        try:
            with _transaction(database):
                database.executemany(
                    "INSERT OR REPLACE INTO scores (key, score) VALUES (?, ?)", rows
                )
                break
        except sqlite3.Error as error:
            if _code(error) != sqlite3.SQLITE_FULL or not quarters:
                raise
        quarters -= 1
        with _transaction(database):
            database.execute(
                "DELETE FROM scores WHERE number <= "
                "(SELECT min(number) + (max(number) - min(number)) / 4 FROM scores)"
            )


@contextmanager
def _transaction(database: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """One; DEFERRED for reading alone, which lets others read too."""
    database.execute(f"BEGIN {kind}")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _checked_score(key: bytes, score: float) -> bytes:
    packed = SCORE.pack(score)
    return packed + _check(key, packed)


def _read_score(key: bytes, checked: object) -> float | None:
    """The score, or None if key, score and check do not belong together."""
    if not isinstance(checked, bytes):
        return None
    packed = checked[: SCORE.size]
    if checked[SCORE.size :] != _check(key, packed):
        return None
    score: float
    (score,) = SCORE.unpack(packed)
    return score


def _check(key: bytes, packed: bytes) -> bytes:
    return hashlib.blake2b(key + packed, digest_size=CHECK_BYTES).digest()


def _is_busy(error: Exception) -> bool:
    return _code(error) in BUSY


def _code(error: Exception) -> int | None:
    """SQLite's primary code; None for an error that is Python's or ours."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # the rest of an extended code says more of it


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), ROWS_AT_ONCE):
        yield values[start : start + ROWS_AT_ONCE]
