"""Files of the score cache that are damaged, locked, full, someone else's, or left by a kill -9.

    python -m tests.campaigns.score_cache --size 2000 --seed 1

The size is the number of files. Each holds right scores and then meets one of `DAMAGES`, in turn;
before each 50th, eight processes write it until they are killed. Passes if every score is the
scorer's own, twice in a row; if each cache logs one warning at most; and if a database that is not
ours keeps its bytes.
"""

import hashlib
import logging
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.types import Pair
from bge_rerank_integrations.wrappers.cache import CachedScorer, pair_keys
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.campaigns.command import run_campaign
from tests.fakes import WordOverlapScorer

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["panda", "bear", "bamboo", "china", "river", "fox", "hat", "red", "大熊猫", "竹子"]
WRITER = """
import random, sys
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.campaigns.score_cache import draw_pairs
from tests.fakes import WordOverlapScorer
cached = CachedScorer(WordOverlapScorer(), SqliteStore(sys.argv[1]))
rng = random.Random(sys.argv[2])
while True:
    cached.score(draw_pairs(rng))
    print(flush=True)
"""
Damage = Callable[[Path, random.Random, list[Pair], ExitStack], None]


def campaign(size: int, seed: int) -> Counter[str]:
    """The number of files by what happened to them; raises `AssertionError` for a wrong score."""
    counts: Counter[str] = Counter()
    for number in range(size):
        rng = random.Random(f"{seed}/{number}")
        with tempfile.TemporaryDirectory() as folder, ExitStack() as after:
            file = Path(folder) / "scores.db"
            if number % 50 == 0:
                _kill_writers(file, rng, counts)
            kind = list(DAMAGES)[number % len(DAMAGES)]
            _one_file(file, rng, kind, after, counts)
            counts["files"] += 1
    return counts


def draw_pairs(rng: random.Random) -> list[Pair]:
    """Pairs of a few words, some of them equal."""

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))

    return [(text(), text()) for _ in range(rng.randint(1, 300))]


def _one_file(
    file: Path, rng: random.Random, kind: str, after: ExitStack, counts: Counter[str]
) -> None:
    pairs = draw_pairs(rng)
    CachedScorer(WordOverlapScorer(), SqliteStore(file)).score(pairs)
    DAMAGES[kind](file, rng, pairs, after)
    foreign = file.read_bytes() if kind == "of someone else" else None
    asked = pairs + draw_pairs(rng)
    scorer = WordOverlapScorer()
    cached = CachedScorer(scorer, SqliteStore(file))
    expected = WordOverlapScorer().score(asked).tolist()
    with _warnings() as warnings:
        for _ in range(2):
            with time_limit(0.05 if kind == "locked" else None):
                assert cached.score(asked).tolist() == expected, kind
    assert len(warnings) <= 1, (kind, warnings)
    assert foreign is None or file.read_bytes() == foreign
    counts[kind] += 1
    counts["warnings"] += len(warnings)
    counts["scores found"] += 2 * len(set(asked)) - scorer.pairs_scored
    counts["scores computed"] += scorer.pairs_scored


def _kill_writers(file: Path, rng: random.Random, counts: Counter[str]) -> None:
    """Eight processes write the file, and each is killed in the middle of its work."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file), str(rng.random())],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        for _ in range(8)
    ]
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 20)):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    for writer in writers:
        writer.communicate()
    counts["killed writers"] += len(writers)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bge_rerank_integrations")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _bits(file: Path, rng: random.Random, _: list[Pair], __: ExitStack) -> None:
    content = bytearray(file.read_bytes())
    for _bit in range(rng.choice([1, 10, 1000])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _pages(file: Path, rng: random.Random, _: list[Pair], __: ExitStack) -> None:
    """Write a page over another one, or noise over it."""
    content = bytearray(file.read_bytes())
    first, second = (4096 * rng.randrange(len(content) // 4096) for _page in range(2))
    page = rng.choice([content[first : first + 4096], rng.randbytes(4096)])
    content[second : second + 4096] = page
    file.write_bytes(content)


def _cut(file: Path, rng: random.Random, _: list[Pair], __: ExitStack) -> None:
    with file.open("r+b") as opened:
        opened.truncate(rng.randrange(file.stat().st_size))


def _poison(file: Path, rng: random.Random, pairs: list[Pair], _: ExitStack) -> None:
    """Give rows the value of another row, a wrong one, or NaN with a right checksum."""
    keys = pair_keys("word-overlap", pairs)
    with _opened(file) as database:
        for key in rng.sample(keys, k=min(5, len(keys))):
            nan = struct.pack("<f", float("nan"))
            checked = nan + hashlib.blake2b(key + nan, digest_size=8).digest()
            value = rng.choice([checked, b"", rng.randbytes(12), "text", 1.5, None])
            if value is None:
                others = "(SELECT score FROM scores WHERE key = ?)"
                values: tuple[object, ...] = (rng.choice(keys), key)
            else:
                others, values = "?", (value, key)
            database.execute(f"UPDATE scores SET score = {others} WHERE key = ?", values)


def _foreign(file: Path, rng: random.Random, _: list[Pair], __: ExitStack) -> None:
    """Another program's database, another version, or one of ours with more in it."""
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c"
    statements = {
        "version": ["PRAGMA user_version = 2"],
        "program": ["PRAGMA application_id = 7"],
        "trigger": ["CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM scores; END"],
        "table": ["CREATE TABLE notes (text TEXT)"],
        "view": [
            "DROP TABLE scores",
            f"CREATE VIEW scores AS SELECT n AS number, n AS key, n AS score FROM ({endless})",
        ],
    }
    with _opened(file) as database:
        for statement in statements[rng.choice(list(statements))]:
            database.execute(statement)


def _locked(file: Path, rng: random.Random, _: list[Pair], after: ExitStack) -> None:
    database = after.enter_context(_opened(file))
    database.execute(f"BEGIN {rng.choice(['EXCLUSIVE', 'IMMEDIATE'])}")


def _full(file: Path, rng: random.Random, _: list[Pair], after: ExitStack) -> None:
    """Let no file grow, as on a full disk."""
    import resource  # absent on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    after.callback(signal.signal, signal.SIGXFSZ, signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    after.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + rng.randrange(4096), hard))


def _unchanged(_: Path, __: random.Random, ___: list[Pair], ____: ExitStack) -> None:
    return


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(file, isolation_level=None)
    try:
        yield database
    finally:
        database.close()


DAMAGES: dict[str, Damage] = {
    "flipped bits": _bits,
    "pages overwritten": _pages,
    "cut": _cut,
    "poisoned rows": _poison,
    "of someone else": _foreign,
    "locked": _locked,
    "full disk": _full,
    "unchanged": _unchanged,
}


if __name__ == "__main__":
    run_campaign("score cache", campaign, size=2000)
