"""Whole runs on Ray, with workers and drivers killed by their own process ids.

Each run is a process of its own. Where a test kills, the worker says who it is and waits, so that
nothing depends on how fast anything is.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.processes import make_gate, next_worker, report_of, start_run
from tests.fakes import WordOverlapScorer

Start = Callable[..., subprocess.Popen[str]]
"""Starts a run of (input, output, loader), with the options of `rerank_files`."""


@pytest.fixture
def start(cluster: dict[str, str]) -> Iterator[Start]:
    with ExitStack() as runs:

        def begin(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
            process = runs.enter_context(start_run(*arguments, cluster=cluster, **options))
            runs.callback(process.kill)  # before it is waited for
            return process

        yield begin


def write_pairs(file: Path, passages: list[str]) -> list[tuple[str, str]]:
    """Pairs, four to a query."""
    pairs = [(f"red fox {place // 4}", passage) for place, passage in enumerate(passages)]
    table = {
        "query_id": [f"q{place // 4}" for place in range(len(pairs))],
        "query": [query for query, _ in pairs],
        "passage": [passage for _, passage in pairs],
        "id": list(range(1000, 1000 + len(pairs))),
    }
    pq.write_table(pa.table(table), file)
    return pairs


def plain_passages(count: int) -> list[str]:
    texts = ("a dog", "a red hat", "a red fox", "fox {0} and red fox")
    return [texts[place % 4].format(place // 4) for place in range(count)]


def results(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "results").to_pylist()
    return sorted(rows, key=lambda row: row["row"])


def failures(output: Path) -> dict[int, tuple[str, str]]:
    files = sorted((output / "errors").glob("*.parquet"))
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len({row["row"] for row in found}) == len(found)
    return {row["row"]: (row["error"], row["message"]) for row in found}


def assert_each_row_once(output: Path, pairs: list[tuple[str, str]], failed: set[int]) -> None:
    rows = results(output)
    assert [row["row"] for row in rows] == [n for n in range(len(pairs)) if n not in failed]
    expected = WordOverlapScorer().score(pairs)
    assert [row["raw_score"] for row in rows] == [expected[row["row"]] for row in rows]
    assert [row["id"] for row in rows] == [1000 + row["row"] for row in rows]
    assert not (output / "scratch").exists()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return make_gate(tmp_path / "gate")


def test_rows_that_cannot_be_scored_cost_themselves_alone(start: Start, tmp_path: Path) -> None:
    passages = plain_passages(40)
    passages[5] = "segfault the red fox bites"
    passages[13] = "raise the red fox"
    passages[22] = "nan fox"
    pairs = write_pairs(tmp_path / "in.parquet", passages)
    out = tmp_path / "out"
    process = start(
        tmp_path / "in.parquet", out, shard_rows=20, workers=2, columns={"carry": ["id"]}
    )
    report = report_of(process)
    assert (report["rows"], report["failed"], report["shards"]) == (40, 3, 2)
    assert report["shards_before"] == 0
    assert report["scorer"] == "word-overlap"
    assert failures(out) == {
        5: ("WorkerDied", "3 workers died while they scored it"),
        13: ("RuntimeError", "raised twice while this row was scored alone"),
        22: ("NonFiniteScoreError", "word-overlap gave nan for the pair at position 0"),
    }
    assert_each_row_once(out, pairs, {5, 13, 22})
    # q1 is rows 4 to 7, of which 5 has none: "a dog", "a red fox", "fox 1 and red fox"
    assert [(r["row"], r["rank"]) for r in results(out)[4:7]] == [(4, 3), (6, 2), (7, 1)]
    everything = b"".join(f.read_bytes() for f in (out / "errors").glob("*"))
    assert b"bites" not in everything


def test_killed_workers_and_a_killed_driver_cost_no_row(
    start: Start, tmp_path: Path, gate: Path
) -> None:
    passages = plain_passages(60)
    passages[2] = passages[33] = "wait for the red fox"
    pairs = write_pairs(tmp_path / "in.parquet", passages)
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    options: dict[str, Any] = {"shard_rows": 12, "workers": 1, "columns": {"carry": ["id"]}}
    process = start(source, out, gate=str(gate), **options)
    first = next_worker(gate, process)
    os.kill(first, signal.SIGKILL)
    second = next_worker(gate, process)  # row 2 by itself, or row 33: Ray gives shards in any order
    assert second != first
    (gate / "go").write_text("")
    third = next_worker(gate, process)  # the other
    assert third == second
    committed = len(list((out / "results").glob("*.parquet")))
    assert 1 <= committed <= 4
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    report = report_of(start(source, out, **options))
    assert (report["rows"], report["failed"], report["shards"]) == (60, 0, 5)
    assert report["shards_before"] == committed
    assert_each_row_once(out, pairs, set())
    assert failures(out) == {}


def test_a_worker_is_replaced_after_its_arguments_were_dropped(
    start: Start, tmp_path: Path, gate: Path
) -> None:
    passages = plain_passages(24)
    passages[2] = "wait for the red fox"
    pairs = write_pairs(tmp_path / "in.parquet", passages)
    out = tmp_path / "out"
    options: dict[str, Any] = {"shard_rows": 12, "workers": 1, "columns": {"carry": ["id"]}}
    process = start(tmp_path / "in.parquet", out, gate=str(gate), forget=True, **options)
    first = next_worker(gate, process)
    os.kill(first, signal.SIGKILL)
    assert next_worker(gate, process) != first
    (gate / "go").write_text("")
    report = report_of(process)
    assert (report["rows"], report["failed"], report["shards_before"]) == (24, 0, 0)
    assert_each_row_once(out, pairs, set())


def test_a_run_ends_with_our_error_where_no_row_is_to_blame(start: Start, tmp_path: Path) -> None:
    write_pairs(tmp_path / "in.parquet", plain_passages(8))
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    died = report_of(start(source, out, "die", workers=1))
    assert died["error"] == "RerankError"
    assert died["message"].startswith("3 workers died while they loaded the model")
    unreadable = report_of(start(source, out, "unreadable", workers=1))
    assert unreadable["error"] == "RerankError"
    assert "lost 4 times without finishing a shard" in unreadable["message"]
    assert "LookupError: the loader is not on this machine" in unreadable["message"]
    wrong = report_of(start(source, out, "nothing"))
    assert wrong["error"] == "InvalidInputError"
    assert "load gave a object" in wrong["message"]
    assert report_of(start(source, out, shard_rows=1000))["failed"] == 0
    # all is done, so nothing is loaded, and nothing is mixed
    other = report_of(start(source, out, "other"))
    assert (other["shards_before"], other["scorer"]) == (1, "word-overlap")
    (out / "results" / "part-0000000.parquet").unlink()
    mixed = report_of(start(source, out, "other"))
    assert mixed["error"] == "InvalidInputError"
    assert "'word-overlap'" in mixed["message"]
    assert "'another'" in mixed["message"]
    assert results_are_missing(out)


def results_are_missing(output: Path) -> bool:
    return not list((output / "results").glob("*"))
