"""Shards, attempts and the folder of results, without Ray."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations.batch.results import ResultFolder
from bge_rerank_integrations.batch.run import worker_size
from bge_rerank_integrations.batch.scoring import (
    DEATHS_OF_A_SHARD,
    Attempts,
    Record,
    schemas,
    score_rows,
)
from bge_rerank_integrations.batch.source import (
    Columns,
    Layout,
    Row,
    RowReader,
    Shard,
    cut_into_shards,
    find_files,
    fingerprint,
    read_layout,
)
from bge_rerank_integrations.errors import InvalidInputError, RemoteUnavailable, RerankError
from bge_rerank_integrations.types import FloatArray, Scorer
from tests.batch.scorers import BadPassageScorer
from tests.fakes import BrokenScorer, WordOverlapScorer

PAIRS = Layout(lists=False, query="query", passage="passage", query_id="query_id", carry=())


def cut(files: list[Path], shard_rows: int) -> tuple[Layout, list[Shard]]:
    layout, _ = read_layout(files, Columns())
    return layout, cut_into_shards(files, layout, shard_rows=shard_rows)


def write_parquet(file: Path, rows: list[dict[str, Any]], *, group: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)
    return file


def write_lines(file: Path, lines: list[str]) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def pairs_of(groups: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [
        {"query_id": key, "query": f"about {key}", "passage": f"{key} {number}"}
        for key, count in groups
        for number in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shard_rows=st.integers(1, 12),
    group=st.integers(1, 15),
    split=st.integers(0, 12),
    parquet=st.booleans(),
)
def test_shards_hold_every_row_once_in_order_and_no_query_in_two(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shard_rows: int,
    group: int,
    split: int,
    parquet: bool,
) -> None:
    folder = tmp_path_factory.mktemp("in")
    groups = [(f"q{place}", size) for place, size in enumerate(sizes)]
    files = []
    for name, some in (("a", groups[:split]), ("b", groups[split:])):
        rows = pairs_of(some)
        if rows and parquet:
            files.append(write_parquet(folder / f"{name}.parquet", rows, group=group))
        elif rows:
            files.append(write_lines(folder / f"{name}.jsonl", [json.dumps(r) for r in rows]))
    layout, shards = cut(files, shard_rows)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    reader = RowReader(layout)
    read = [reader.read(shard) for shard in shards]
    assert [row.values for some in read for row in some] == pairs_of(groups)
    assert [row.number for some in read for row in some] == list(range(sum(sizes)))
    where = [{values_of(row)["query_id"] for row in some} for some in read]
    assert sum(map(len, where)) == len(sizes)
    for shard, following in pairwise(shards):
        assert shard.rows >= shard_rows or shard.file != following.file
    # a shard alone, as a worker meets it that begins here, and backwards
    for shard, expected in reversed(list(zip(shards, read, strict=True))):
        assert RowReader(layout).read(shard) == expected
        assert reader.read(shard) == expected


def test_rows_of_one_query_must_be_contiguous(tmp_path: Path) -> None:
    rows = pairs_of([("a", 2), ("secret", 3), ("a", 1)])
    file = write_parquet(tmp_path / "a.parquet", rows)
    lines = write_lines(tmp_path / "a.jsonl", [json.dumps(row) for row in rows])
    for one in (file, lines):
        with pytest.raises(InvalidInputError, match="rows 0 and 5 have the same 'query_id'") as no:
            cut([one], 2)
        assert "secret" not in str(no.value)
    twice = [file, tmp_path / "b.parquet"]
    write_parquet(file, pairs_of([("a", 2)]))
    write_parquet(twice[1], pairs_of([("a", 2)]))
    with pytest.raises(InvalidInputError, match="rows 0 and 2"):
        cut(twice, 9)


def test_rows_without_a_key_do_not_end_a_query(tmp_path: Path) -> None:
    rows = pairs_of([("a", 2)])
    lines = [json.dumps(rows[0]), "{", json.dumps({"query": "x"}), "", json.dumps(rows[1])]
    file = write_lines(tmp_path / "a.jsonl", lines)
    _, (shard,) = cut([file], 1)
    assert shard.rows == 4
    parquet = write_parquet(
        tmp_path / "a.parquet", [rows[0], {**rows[1], "query_id": None}, rows[1]]
    )
    _, (shard,) = cut([parquet], 1)
    assert shard.rows == 3


def test_a_layout_is_read_from_the_input(tmp_path: Path) -> None:
    rows = [{"q": "x", "texts": ["a"], "n": 7, "score": 0.5}]
    file = write_parquet(tmp_path / "a.parquet", rows)
    layout, copied = read_layout([file], Columns("q", "texts", None, ("n",)))
    assert (layout.lists, layout.query_id, layout.read) == (True, None, ["q", "texts", "n"])
    assert copied == [pa.field("n", pa.int64())]
    for columns, says in (
        (Columns(), "no column 'query' that holds a text; its columns are n, q, score, texts"),
        (Columns("n", "texts"), "no column 'n'"),
        (Columns("q", "n"), "no column 'n' that holds a text or a list"),
        (Columns("q", "texts", carry=("gone",)), "no column 'gone' to copy"),
        (Columns("q", "texts", carry=("score",)), "'score' cannot be copied"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            read_layout([file], columns)
    other = write_parquet(tmp_path / "b.parquet", [{"q": "x", "texts": ["a"]}])
    with pytest.raises(InvalidInputError, match=r"b\.parquet has other columns than"):
        read_layout([file, other], Columns("q", "texts"))


def test_a_null_in_the_first_json_line_is_no_type(tmp_path: Path) -> None:
    rows = [{"query": "x", "passage": None, "n": 1}, {"query": "x", "passage": "a", "n": None}]
    file = write_lines(tmp_path / "a.jsonl", ["{", *(json.dumps(row) for row in rows)])
    layout, _ = read_layout([file], Columns())
    assert (layout.lists, layout.passage) == (False, "passage")
    write_lines(file, [json.dumps(rows[0])] * 2)
    with pytest.raises(InvalidInputError, match="no column 'passage' that holds a text"):
        read_layout([file], Columns())


def test_files_are_found_in_folders_and_formats_do_not_mix(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in find_files([tmp_path])] == ["a.parquet", "b.parquet"]
    with pytest.raises(InvalidInputError, match="there is no"):
        find_files([tmp_path / "gone"])
    with pytest.raises(InvalidInputError, match=r"notes\.txt is neither"):
        find_files([tmp_path / "notes.txt"])
    (tmp_path / "c.jsonl").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="both formats"):
        find_files([tmp_path])


def read_everything(file: Path) -> list[dict[str, Any]]:
    layout, shards = cut([file], 50)
    reader = RowReader(layout)
    return [values_of(row) for shard in shards for row in reader.read(shard)]


def values_of(row: Row) -> dict[str, Any]:
    assert isinstance(row.values, dict)
    return row.values


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    rows = pairs_of([(f"q{number}", 5) for number in range(60)])
    file = write_parquet(tmp_path / "candidates.parquet", rows, group=100)
    good, rng = file.read_bytes(), np.random.default_rng(21)
    assert read_everything(file) == rows
    damaged = [good[:size] for size in (0, 1, 4, 8, 100, len(good) // 2, len(good) - 1)]
    for _ in range(300):
        changed = bytearray(good)
        for place in rng.integers(len(good), size=rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    refused: list[str] = []
    for content in [*damaged, b"PAR1garbage"]:
        file.write_bytes(content)
        try:
            read_everything(file)
        except InvalidInputError as error:
            refused.append(str(error))
    assert len(refused) > 200
    named = ("candidates.parquet", "rows of one query")
    assert [said for said in refused if not any(name in said for name in named)] == []


def test_a_parquet_file_that_changes_during_the_run_is_refused(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", pairs_of([("a", 4), ("b", 4)]))
    layout, shards = cut([file], 4)
    write_parquet(file, pairs_of([("a", 4), ("b", 1)]))
    with pytest.raises(InvalidInputError, match=r"a\.parquet has only 1 of 4 rows from row 4"):
        RowReader(layout).read(shards[1])
    write_parquet(file, [{"query_id": "a", "query": "b"}] * 8)
    with pytest.raises(InvalidInputError, match=r"a\.parquet cannot be read as Parquet"):
        RowReader(layout).read(shards[0])


@pytest.mark.parametrize(
    ("nodes", "asked", "size"),
    [
        ([{"CPU": 8}, {"CPU": 6}], {}, (4, 0)),
        ([{"CPU": 2}], {}, (2, 0)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8}], {}, (1, 1)),
        ([{"CPU": 8, "GPU": 2}], {"gpus": 0.5}, (1, 0.5)),
        ([{"CPU": 8}], {"cpus": 1}, (1, 0)),
    ],
)
def test_a_worker_is_as_large_as_asked_or_as_is_usual(
    nodes: list[dict[str, float]], asked: dict[str, Any], size: tuple[float, float]
) -> None:
    assert worker_size(nodes, **asked) == size


@pytest.mark.parametrize(
    ("nodes", "asked", "says"),
    [
        ([{"CPU": 2}], {"cpus": 3}, r"fits on no node of the cluster \(2 CPUs and 0 GPUs\)"),
        ([{"CPU": 8}, {"CPU": 1, "GPU": 1}], {"cpus": 2, "gpus": 1}, "fits on no node"),
        ([], {}, "which has none"),
        ([{"CPU": 2}], {"cpus": -1}, "cpus is -1"),
        ([{"CPU": 2}], {"cpus": 0, "gpus": 0}, "both 0"),
    ],
)
def test_a_worker_that_could_never_run_is_refused(
    nodes: list[dict[str, float]], asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInputError, match=says):
        worker_size(nodes, **asked)


def test_a_fingerprint_is_of_contents_and_order(tmp_path: Path) -> None:
    one, two, copy = (tmp_path / name for name in "abc")
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    copy.write_bytes(b"one")
    assert fingerprint([one, two]) == fingerprint([copy, two]) != fingerprint([two, one])
    one.write_bytes(b"onetwo")
    two.write_bytes(b"")
    assert fingerprint([one, two]) != fingerprint([copy, two])


def rows_of(passages: list[Any], *, each: int = 2) -> list[Row]:
    return [
        Row(
            100 + place,
            {"query_id": place // each, "query": f"red fox {place // each}", "passage": text},
        )
        for place, text in enumerate(passages)
    ]


def attempts(tmp_path: Path) -> Attempts:
    return Attempts.read(tmp_path / "shard.json", shard=4)


def score(
    scorer: Scorer, rows: list[Row], tmp_path: Path, layout: Layout = PAIRS
) -> tuple[list[Record], list[Record]]:
    return score_rows(scorer, rows, layout, attempts(tmp_path), normalize=True)


def test_ranks_count_within_a_query_and_skip_what_has_no_score(tmp_path: Path) -> None:
    rows = rows_of(["fox", "red fox", "nan", 7, "red", "red fox 2", None, "b"])
    scored, failed = score(BadPassageScorer(), rows, tmp_path)
    assert [(row["row"], row["query_id"], row["raw_score"], row["rank"]) for row in scored] == [
        (100, 0, 1.0, 2),
        (101, 0, 2.0, 1),
        (104, 2, 1.0, 2),
        (105, 2, 3.0, 1),
        (107, 3, 0.0, 1),
    ]
    assert [(row["row"], row["query_id"], row["error"]) for row in failed] == [
        (102, 1, "NonFiniteScoreError"),
        (103, 1, "InvalidInputError"),
        (106, 3, "InvalidInputError"),
    ]
    assert failed[1]["message"].startswith("the passage is int, not str")


def test_another_query_under_the_same_id_is_not_ranked_with_it(tmp_path: Path) -> None:
    rows = rows_of(["fox", "red"])
    values_of(rows[1])["query"] = "secret words"
    scored, failed = score(WordOverlapScorer(), rows, tmp_path)
    assert (len(scored), len(failed)) == (1, 1)
    assert "not that of the first row with this query_id" in failed[0]["message"]
    assert "secret" not in failed[0]["message"]


class Unreachable(WordOverlapScorer):
    def score(self, pairs: Any) -> FloatArray:
        raise RemoteUnavailable("no answer")


def test_what_no_row_is_to_blame_for_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RemoteUnavailable):
        score(Unreachable(), rows_of(["a"]), tmp_path)


def test_what_no_scorer_should_raise_is_narrowed_down_to_its_row(tmp_path: Path) -> None:
    rows = rows_of(["a", "raise secret", "c", "d"])
    scored, failed = score(BadPassageScorer(), rows, tmp_path)
    assert [row["row"] for row in scored] == [100, 102, 103]
    assert failed == [
        {
            **values_of(rows[1]),
            "row": 101,
            "error": "RuntimeError",
            "message": "raised twice while this row was scored alone",
        }
    ]


class FailingOnce(WordOverlapScorer):
    failed = False

    def score(self, pairs: Any) -> FloatArray:
        if not self.failed:
            self.failed = True
            raise RuntimeError("the device was busy")
        return super().score(pairs)


def test_a_row_has_a_second_try(tmp_path: Path) -> None:
    scored, failed = score(FailingOnce(), rows_of(["red fox"]), tmp_path)
    assert ([row["raw_score"] for row in scored], failed) == ([2.0], [])


def test_a_device_that_is_gone_ends_the_run_and_does_not_condemn_every_row(tmp_path: Path) -> None:
    rows = rows_of([str(number) for number in range(40)])
    with pytest.raises(RerankError, match=r"11 rows of a shard raised .* last RuntimeError"):
        score(BrokenScorer(), rows, tmp_path)


def test_workers_that_die_of_every_row_end_the_run(tmp_path: Path) -> None:
    for place in range(DEATHS_OF_A_SHARD):
        attempts(tmp_path).begin(place, place + 1)  # and the worker dies
    with pytest.raises(RerankError, match="died 30 times in shard 4"):
        attempts(tmp_path)


def test_innocent_rows_survive_the_deaths_of_their_workers(tmp_path: Path) -> None:
    for start, stop in ((0, 8), (3, 4)):
        attempts(tmp_path).begin(start, stop)  # and the worker dies
    last = attempts(tmp_path)
    assert set(last.rows) == set(range(8))
    assert not any(last.is_hopeless(place) for place in range(9))
    last.begin(3, 4)
    assert [place for place in range(9) if attempts(tmp_path).is_hopeless(place)] == [3]
    rows = rows_of(["red fox"] * 9)
    scored, failed = score_rows(
        WordOverlapScorer(), rows, PAIRS, Attempts.read(last.file, shard=4), normalize=True
    )
    assert len(scored) == 8
    assert [(row["row"], row["error"], row["message"]) for row in failed] == [
        (103, "WorkerDied", "3 workers died while they scored it")
    ]


def committed(folder: ResultFolder, shard: int, texts: list[Any]) -> None:
    records = score(BadPassageScorer(), rows_of(texts), folder.folder)
    both = schemas(PAIRS, [pa.field("query_id", pa.int64())])
    folder.commit(shard, *map(pa.Table.from_pylist, records, both))


def test_tables_have_score_raw_score_and_rank(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "out")
    with folder.opened({"input": "x"}):
        committed(folder, 0, ["fox", "red fox", None])
        (row, best) = pq.read_table(tmp_path / "out" / "results").to_pylist()
        assert row == {
            "row": 100,
            "query_id": 0,
            "score": 1 / (1 + np.exp(-1.0)),
            "raw_score": 1.0,
            "rank": 2,
        }
        assert (best["row"], best["rank"]) == (101, 1)
        (error,) = pq.read_table(tmp_path / "out" / "errors").to_pylist()
        assert (error["row"], error["query_id"], error["error"]) == (102, 1, "InvalidInputError")
        assert (folder.is_done(0), folder.failed_rows()) == (True, 1)
        committed(folder, 0, ["fox", "red fox", "b"])  # again, and this time without an error
        assert (folder.is_done(0), folder.failed_rows()) == (True, 0)


def test_a_folder_is_of_one_input_one_scorer_and_one_run_at_a_time(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "out")
    manifest = {"input": "x", "shard_rows": 5}
    with folder.opened(manifest):
        folder.claim_scorer("one", "logit")
        with (
            pytest.raises(InvalidInputError, match="another run is writing"),
            ResultFolder(tmp_path / "out").opened(manifest),
        ):
            pass
    with (
        pytest.raises(InvalidInputError, match="another shard_rows: 5 is in its manifest"),
        folder.opened({"input": "x", "shard_rows": 6}),
    ):
        pass
    resumed = ResultFolder(tmp_path / "out")
    with resumed.opened(manifest):
        resumed.claim_scorer("one", "logit")
        with pytest.raises(InvalidInputError, match=r"'one' is in its scorer\.json.* has 'two'"):
            resumed.claim_scorer("two", "logit")
        with pytest.raises(FileNotFoundError):  # a worker of the run before, which was killed
            folder.claim_scorer("one", "logit")
    stranger = tmp_path / "holiday"
    stranger.mkdir()
    (stranger / "photo").write_bytes(b"")
    with (
        pytest.raises(InvalidInputError, match="has no run to resume"),
        ResultFolder(stranger).opened({"input": "x"}),
    ):
        pass
    assert [path.name for path in stranger.iterdir()] == ["photo"]


def test_a_commit_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "out")
    table = pa.table({"row": [1]})
    with folder.opened({"input": "x"}):
        (tmp_path / "out" / "results" / "part-0000003.parquet").mkdir()  # no file can replace it
        with pytest.raises(OSError, match="part-0000003"):
            folder.commit(3, table, table.slice(0, 0))
        assert list((tmp_path / "out" / "scratch").glob("*/*")) == []
        assert not folder.is_done(3)
    assert not (tmp_path / "out" / "scratch").exists()


KILLED = """
import sys
import pyarrow as pa
from pathlib import Path
from bge_rerank_integrations.batch.results import ResultFolder
folder = ResultFolder(Path(sys.argv[1]))
table = pa.table({"row": list(range(50_000))})
with folder.opened({"input": "x"}):
    print("up", flush=True)
    while True:
        folder.commit(0, table, table)
"""


def test_a_writer_killed_at_any_point_leaves_whole_files(tmp_path: Path) -> None:
    folder = ResultFolder(tmp_path / "out")
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not folder.is_done(0):
                assert writer.poll() is None
            os.kill(writer.pid, signal.SIGKILL)
        (part,) = (tmp_path / "out" / "results").glob("*.parquet")
        assert pq.read_table(part).num_rows == 50_000
        with folder.opened({"input": "x"}):
            pass
        assert not (tmp_path / "out" / "scratch").exists()
        part.unlink()


def test_nothing_of_a_scorer_s_pairs_is_lost_between_rows_of_many_lengths(tmp_path: Path) -> None:
    lists = Layout(lists=True, query="query", passage="passages", query_id=None, carry=())
    rows = [
        Row(n, {"query": "red fox", "passages": ["red fox", "fox", "dog", "red"][: n % 5]})
        for n in range(20)
    ]
    records = score(WordOverlapScorer(), rows, tmp_path, lists)
    scored, failed = map(pa.Table.from_pylist, records, schemas(lists, []))
    assert failed.num_rows == 0
    assert scored.column("raw_score").to_pylist() == [
        [2.0, 1.0, 0.0, 1.0][: n % 5] for n in range(20)
    ]
    assert scored.column("rank")[4].as_py() == [1, 2, 4, 3]  # equal scores in the input's order
    plain, _ = score_rows(WordOverlapScorer(), rows, lists, attempts(tmp_path), normalize=False)
    assert [row["score"] for row in plain] == [row["raw_score"] for row in plain]


def test_half_a_surrogate_pair_costs_no_run(tmp_path: Path) -> None:
    lines = ['{"query_id": "\\ud800", "query": "a", "passage": "a", "n": {"\\udfff": 1}}']
    file = write_lines(tmp_path / "a.jsonl", lines)
    layout, copied = read_layout([file], Columns(carry=("n",)))
    (shard,) = cut_into_shards([file], layout, shard_rows=1)
    rows = RowReader(layout).read(shard)
    scored, _ = score_rows(WordOverlapScorer(), rows, layout, attempts(tmp_path), normalize=True)
    table = pa.Table.from_pylist(scored, schemas(layout, copied)[0])
    assert table.select(["query_id", "n", "raw_score"]).to_pylist() == [
        {"query_id": "\ufffd", "n": '{"\ufffd": 1}', "raw_score": 1.0}
    ]


def test_json_lines_that_change_during_the_run_are_refused(tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in pairs_of([("a", 2), ("b", 2)])]
    file = write_lines(tmp_path / "a.jsonl", rows)
    layout, shards = cut([file], 2)
    write_lines(file, rows[:3])
    with pytest.raises(InvalidInputError, match=r"a\.jsonl has only 1 of 2 rows from row 2"):
        RowReader(layout).read(shards[1])
