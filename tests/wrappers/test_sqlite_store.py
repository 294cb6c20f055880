"""Whatever happens to the file: a right score, or none and one warning."""

import logging
import math
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.wrappers import sqlite_store
from bge_rerank_integrations.wrappers.cache import CachedScorer, pair_keys
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.fakes import StatedScorer, WordOverlapScorer
from tests.wrappers.test_cache import PAIRS, SCORES

ROOT = Path(__file__).resolve().parents[2]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_scores_outlive_the_store(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    SqliteStore(file).put({key(number): number / 8 for number in range(2000)})
    found = SqliteStore(str(file)).get([key(number) for number in range(2500)])
    assert found == {key(number): number / 8 for number in range(2000)}


def test_the_file_holds_no_text(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    secret = "the merger is off"
    CachedScorer(WordOverlapScorer(), SqliteStore(file)).score([(secret, f"{secret} for now")])
    assert b"merger" not in file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.db"]


def test_the_file_stays_within_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    store, written = SqliteStore(file, max_bytes=2**20), 40_000
    for start in range(0, written, 1000):
        store.put({key(number): float(number) for number in range(start, start + 1000)})
        assert file.stat().st_size <= 2**20
    found = store.get([key(number) for number in range(written)])
    assert all(found[k] == int.from_bytes(k, "big") for k in found)
    kept = sorted(int.from_bytes(k, "big") for k in found)
    assert kept[-1] == written - 1
    assert kept == list(range(kept[0], written)), "the oldest went, and none between"
    assert len(kept) > 3000


def test_more_scores_at_once_than_the_file_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(tmp_path / "scores.db", max_bytes=2**20)
    store.put({key(number): 1.0 for number in range(30_000)})
    assert store.get([key(29_999)]) == {key(29_999): 1.0}
    assert warnings(caplog) == []


@pytest.mark.parametrize("size", [0, 2**20 - 1, 1e9, True, None])
def test_a_bound_too_small_is_refused(tmp_path: Path, size: object) -> None:
    with pytest.raises(InvalidInputError, match="max_bytes is"):
        SqliteStore(tmp_path / "scores.db", max_bytes=size)  # type: ignore[arg-type]


def test_a_bound_may_be_a_number_of_numpy(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "scores.db", max_bytes=np.int64(2**20))  # type: ignore[arg-type]
    store.put({key(1): 0.5})
    assert store.get([key(1)]) == {key(1): 0.5}


def scored_without(
    store: SqliteStore,
    caplog: pytest.LogCaptureFixture,
    cause: str,
    *,
    seconds: float | None = None,
) -> None:
    """The scores are right, nothing is known the second time, and one warning says why."""
    for _ in range(3):
        scorer = WordOverlapScorer()
        with time_limit(seconds):
            assert CachedScorer(scorer, store).score(PAIRS).tolist() == SCORES
        assert scorer.pairs_scored == len(PAIRS)
    (warning,) = warnings(caplog)
    assert cause in warning
    assert "fox" not in warning


@pytest.mark.parametrize("content", [b"not a database, but long enough" * 50, b"x"])
def test_a_file_that_is_none_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    scored_without(SqliteStore(file), caplog, "notes.txt")
    assert file.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE scores (number INTEGER, key BLOB, score BLOB)")
    other.close()
    before = file.read_bytes()
    scored_without(SqliteStore(file), caplog, "database of something else")
    assert file.read_bytes() == before


def test_a_folder_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored_without(SqliteStore(tmp_path / "no" / "scores.db"), caplog, "unable to open")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored_without(SqliteStore(tmp_path), caplog, "unable to open")


def test_a_file_that_another_process_holds_is_passed_for_this_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "scores.db"
    store = SqliteStore(file)
    CachedScorer(WordOverlapScorer(), store).score(PAIRS[:1])
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    # without a limit each look at the file would wait for two seconds
    scored_without(store, caplog, "locked", seconds=0.5)
    holder.execute("ROLLBACK")
    holder.close()
    scorer = WordOverlapScorer()
    assert CachedScorer(scorer, store).score(PAIRS).tolist() == SCORES
    assert scorer.pairs_scored == 3, "the first was there all along"


def test_a_file_that_can_only_be_read_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.db"
        CachedScorer(WordOverlapScorer(), SqliteStore(file)).score(PAIRS[:2])
        file.chmod(0o444)
        Path(folder).chmod(0o555)
        program = f"""
import logging
logging.basicConfig(format="%(message)s")
from tests.fakes import StatedScorer, WordOverlapScorer
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.wrappers.test_cache import PAIRS
import os
if os.geteuid() == 0:
    os.setuid(65534)  # root may write everywhere
scorer = WordOverlapScorer()
cached = CachedScorer(scorer, SqliteStore({str(file)!r}))
print(cached.score(PAIRS).tolist(), cached.score(PAIRS).tolist(), scorer.pairs_scored)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        Path(folder).chmod(0o755)
    assert done.stdout.split("] ") == [f"{SCORES}"[:-1], f"{SCORES}"[:-1], "4\n"]
    assert done.stderr.count("\n") == 1
    assert "readonly" in done.stderr


def test_a_full_disk(tmp_path: Path) -> None:
    program = f"""
import logging, resource, signal
logging.basicConfig(format="%(message)s")
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store = SqliteStore({str(tmp_path / "scores.db")!r})
for start in range(0, 10_000, 100):
    store.put({{n.to_bytes(32, "big"): float(n) for n in range(start, start + 100)}})
found = store.get([n.to_bytes(32, "big") for n in range(10_000)])
assert all(score == int.from_bytes(key, "big") for key, score in found.items())
print(len(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 300 < int(done.stdout) < 3000
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_gives_no_wrong_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    file = tmp_path / "scores.db"
    expected = {key(number): float(number) for number in range(1000)}
    SqliteStore(file).put(expected)
    content, chance = bytearray(file.read_bytes()), random.Random(seed)
    if seed % 4 == 0:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.choice([1, 10, 1000])):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    file.write_bytes(content)
    store = SqliteStore(file)
    assert store.get(list(expected)).items() <= expected.items()
    store.put({key(5000): 7.0})
    assert store.get([*expected, key(5000)]).items() <= {**expected, key(5000): 7.0}.items()
    assert len(warnings(caplog)) <= 1


def test_a_flipped_bit_in_a_score_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "scores.db"
    store = SqliteStore(file)
    CachedScorer(WordOverlapScorer(), store).score(PAIRS)
    database = sqlite3.connect(file)
    ((number, good),) = database.execute("SELECT number, score FROM scores LIMIT 1").fetchall()
    bad = bytes([good[0], good[1], good[2] ^ 1, *good[3:]])
    with database:
        database.execute("UPDATE scores SET score = ? WHERE number = ?", (bad, number))
    database.close()
    scorer = WordOverlapScorer()
    cached = CachedScorer(scorer, store)
    assert cached.score(PAIRS).tolist() == SCORES
    assert scorer.pairs_scored == 1, "only the damaged one"
    assert cached.score(PAIRS).tolist() == SCORES
    assert scorer.pairs_scored == 1, "it was written anew"
    (warning,) = warnings(caplog)
    assert "1 of its scores are damaged" in warning


def test_a_score_under_another_key_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    store = SqliteStore(file)
    store.put({key(1): 1.0, key(2): 2.0})
    database = sqlite3.connect(file)
    with database:
        database.execute(
            "UPDATE scores SET score = (SELECT score FROM scores WHERE key = ?) WHERE key = ?",
            (key(1), key(2)),
        )
    database.close()
    assert store.get([key(1), key(2)]) == {key(1): 1.0}


@pytest.mark.parametrize("question", ["-- PRAGMA application_id", "-- PRAGMA user_version"])
@pytest.mark.parametrize("writes", [False, True])
def test_another_begins_the_file_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str, writes: bool
) -> None:
    path = tmp_path / "scores.db"
    connect = sqlite3.connect
    asked: list[str] = []

    def begin(statement: str) -> None:
        """By another connection put a score into the file, once, while the question is asked."""
        if not asked and statement == question:
            asked.append(statement)
            with time_limit(0.01):
                SqliteStore(path).put({key(1): 0.5})

    def watched(*args: Any, **options: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*args, **options)
        if not asked:
            database.set_trace_callback(begin)
        return database

    monkeypatch.setattr(sqlite3, "connect", watched)
    store = SqliteStore(path)
    if writes:
        store.put({key(2): 1.5})
    else:
        store.get([key(1)])
    assert asked == [question]
    store.put({key(2): 1.5})
    assert store.get([key(2)]) == {key(2): 1.5}


def test_sixteen_threads_share_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = StatedScorer()
    cached = CachedScorer(scorer, SqliteStore(tmp_path / "scores.db"))
    together = threading.Barrier(16)

    def work(number: int) -> bool:
        together.wait(60)
        mine = [str((number * 3 + step) % 60) for step in range(20)]
        return all(
            cached.score([("q", text) for text in mine]).tolist() == [float(t) for t in mine]
            for _ in range(4)
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert warnings(caplog) == []
    before = len(scorer.asked)
    cached.score([("q", str(number)) for number in range(60)])
    assert len(scorer.asked) == before


WORKER = """
import sys
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.fakes import StatedScorer
sys.stdin.readline()
cached = CachedScorer(StatedScorer(), SqliteStore(sys.argv[1], max_bytes=2**20))
for turn in range(20):
    mine = [str((int(sys.argv[2]) * 50 + turn * 37 + step) % 1000) for step in range(100)]
    assert cached.score([("q", text) for text in mine]).tolist() == [float(t) for t in mine]
"""


def test_four_processes_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(file), str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    ended = [worker.communicate("go\n") for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert [errors for _, errors in ended] == [""] * 4, "nor a warning"
    scorer = StatedScorer()
    everything = [("q", str(number)) for number in range(1000)]
    CachedScorer(scorer, SqliteStore(file)).score(everything)
    known = 1000 - sum(len(asked) for asked in scorer.asked)
    assert known == len(
        {(n * 50 + t * 37 + s) % 1000 for n in range(4) for t in range(20) for s in range(100)}
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_goes_on_with_the_same_store(tmp_path: Path) -> None:
    file = tmp_path / "scores.db"
    program = f"""
import os
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
store = SqliteStore({str(file)!r})
store.put({{b"a" * 32: 1.0}})
if (child := os.fork()) == 0:
    assert store.get([b"a" * 32]) == {{b"a" * 32: 1.0}}
    store.put({{b"b" * 32: 2.0}})
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.get([b"b" * 32]) == {{b"b" * 32: 2.0}}
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_while_a_thread_was_in_sqlite_scores_without_the_cache(
    tmp_path: Path,
) -> None:
    """SQLite's locks may be held there for good, by a thread that the child does not have."""
    program = f"""
import logging, os, threading
logging.basicConfig(format="%(message)s")
from bge_rerank_integrations.base import fork
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.fakes import StatedScorer, WordOverlapScorer
from tests.wrappers.test_cache import PAIRS, SCORES
store = SqliteStore({str(tmp_path / "scores.db")!r})
CachedScorer(WordOverlapScorer(), store).score(PAIRS)
inside, leave = threading.Event(), threading.Event()
fork.FORK_PATIENCE_SECONDS = 0.01

def stay():
    with store._open():
        inside.set()
        leave.wait()

def child(expected):
    if (process := os.fork()) == 0:
        scorer = WordOverlapScorer()
        cached = CachedScorer(scorer, store)
        right = all(cached.score(PAIRS).tolist() == SCORES for _ in range(2))
        os._exit(0 if right and scorer.pairs_scored == expected else 1)
    assert os.waitpid(process, 0)[1] == 0, expected

thread = threading.Thread(target=stay)
thread.start()
inside.wait()
child(expected=2 * len(PAIRS))
leave.set()
thread.join()
child(expected=0)
scorer = WordOverlapScorer()
CachedScorer(scorer, store).score(PAIRS)
assert scorer.pairs_scored == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "forked while another thread used it" in done.stderr


def of_someone_else(file: Path, *statements: str) -> SqliteStore:
    """A file that bears our marks and was made by others."""
    database = sqlite3.connect(file)
    for statement in (f"PRAGMA application_id = {0x62676572}", "PRAGMA user_version = 1"):
        database.execute(statement)
    with database:
        for statement in statements:
            database.execute(statement)
    database.close()
    return SqliteStore(file)


def test_a_view_in_place_of_the_table_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = sqlite_store._pack(pair_keys("logit:word-overlap", PAIRS)[0], 7.0).hex()
    key_ = pair_keys("logit:word-overlap", PAIRS)[0].hex()
    store = of_someone_else(
        tmp_path / "scores.db",
        f"CREATE VIEW scores AS SELECT 1 AS number, x'{key_}' AS key, x'{wrong}' AS score",
    )
    scored_without(store, caplog, "database of something else")


def test_a_table_with_a_trigger_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM scores; END"
    store = of_someone_else(tmp_path / "scores.db", sqlite_store.TABLE, trigger)
    scored_without(store, caplog, "database of something else")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: float
) -> None:
    store = SqliteStore(tmp_path / "scores.db")
    store.put({pair_keys("logit:word-overlap", PAIRS)[1]: bad})
    assert CachedScorer(WordOverlapScorer(), store).score(PAIRS).tolist() == SCORES
    (warning,) = warnings(caplog)
    assert "1 of its scores are damaged" in warning


def test_a_pipe_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    scored_without(SqliteStore(tmp_path / "pipe"), caplog, "not a database")


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has a NUL character"):
        SqliteStore("scores\0.db")


def test_a_locked_file_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scores.db"
    SqliteStore(file).put({key(1): 0.5})
    connect = sqlite3.connect
    waits: list[float] = []

    def watched(*args: Any, **options: Any) -> sqlite3.Connection:
        waits.append(options["timeout"])
        database: sqlite3.Connection = connect(*args, **options)
        return database

    holder = connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", watched)
    store = SqliteStore(file)
    with time_limit(0.1):
        assert store.get([key(1)]) == {}
    store.put({key(2): 1.5})
    assert store.get([key(1)]) == {}
    assert 0 < waits[0] <= 0.1
    assert waits[1:] == [0, 0]
    holder.execute("ROLLBACK")
    holder.close()
    assert store.get([key(1), key(2)]) == {key(1): 0.5}


def test_no_key_is_looked_up_after_the_time_limit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "scores.db")
    store.put({key(1): 0.5})
    with time_limit(0):
        assert store.get([key(1)]) == {}
        store.put({key(2): 1.5})
    assert store.get([key(1), key(2)]) == {key(1): 0.5}
