"""Runs of `rerank_files` whose workers and drivers are killed; every row must be there once.

    python -m tests.campaigns.ray_data --size 60 --seed 1

The size is the number of inputs: Parquet and JSON lines, of pairs and of lists, with rows that
kill a worker, raise, have no finite score or no text. At random rows the worker waits, and the
campaign kills it, or its driver, or starts a second driver or one with a changed input, or lets it
go on. Each Parquet file is also read with damaged bytes. Passes if each run gives every row once,
the right scores and ranks, and the reasons for the rest; if each other driver is refused; and if
every damaged file is refused by name or read.
"""

import json
import os
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_rerank_integrations.batch.source import Columns, RowReader, cut_into_shards, read_layout
from bge_rerank_integrations.errors import InvalidInputError
from tests.batch.processes import make_gate, report_of, start_run, worker_or_end
from tests.campaigns.command import run_campaign, time_is_up
from tests.fakes import WordOverlapScorer
from tests.ray.processes import shared_cluster

ERRORS = {
    "segfault": "WorkerDied",
    "raise": "RuntimeError",
    "nan": "NonFiniteScoreError",
    None: "InvalidInputError",
}
WORDS = ("a dog", "a red hat", "a red fox", "fox and red fox", "wait for the red fox", "")
Rows = list[dict[str, Any]]


def campaign(size: int, seed: int, cluster: dict[str, str] | None = None) -> Counter[str]:
    """The number of inputs, rows, kills and refusals; raises `AssertionError` for a wrong row."""
    if cluster is None:
        with shared_cluster() as environment:
            return campaign(size, seed, environment)
    counts: Counter[str] = Counter()
    for number in range(size):
        if time_is_up():
            break
        with tempfile.TemporaryDirectory() as folder:
            _one_input(Path(folder), random.Random(f"{seed}/{number}"), cluster, counts)
    return counts


def _one_input(
    folder: Path, rng: random.Random, cluster: dict[str, str], counts: Counter[str]
) -> None:
    rows, lists = _rows(rng), rng.random() < 0.5
    rows = _in_lists(rows) if lists else rows
    parquet = rng.random() < 0.6
    source = folder / ("in.parquet" if parquet else "in.jsonl")
    _write(source, rows, rng)
    changed = folder / source.name.replace("in", "changed")
    _write(changed, rows[::-1], rng)
    output = folder / "out"
    options: dict[str, Any] = {
        "shard_rows": rng.randint(2, 9),
        "workers": 1,
        "columns": {"carry": ["id"]},
    }
    # a row that costs three workers is given up, and one that kills them costs its neighbours one
    allowed = 1 if "segfault" in str(rows) else 2
    drivers = 0
    while True:
        drivers += 1
        gate = make_gate(folder / f"gate{drivers}")
        run = start_run(source, output, cluster=cluster, gate=str(gate), **options)
        kills = 0
        while (worker := worker_or_end(gate, run)) is not None:
            action = rng.choices(("go", "worker", "driver", "second"), (4, 2, 2, 1))[0]
            if action == "worker" and kills < allowed:
                kills += 1
                os.kill(worker, signal.SIGKILL)
                counts["killed workers"] += 1
                continue
            if action == "driver" and drivers < 4:
                os.kill(run.pid, signal.SIGKILL)
                run.communicate()
                counts["killed drivers"] += 1
                break
            if action == "second":
                second = report_of(start_run(source, output, cluster=cluster, **options))
                assert "another run is writing" in second["message"], second
                counts["refused drivers"] += 1
            (gate / "go").write_text("")
        else:
            break
        other = report_of(start_run(changed, output, cluster=cluster, **options))
        assert "was created with another input" in other["message"], other
        counts["refused drivers"] += 1
    report = report_of(run)
    counts["inputs"] += 1
    counts["rows"] += len(rows)
    assert report.get("rows") == len(rows), report
    _check(output, rows, lists=lists)
    if parquet:
        _read_damaged(source, rng, counts)


def _rows(rng: random.Random) -> Rows:
    """Pairs in groups of one query, with the rows that fail."""
    rows: Rows = []
    for query in range(rng.randint(6, 20)):
        for _ in range(rng.randint(1, 6)):
            kind = rng.choices(("good", "raise", "nan", None), (30, 1, 1, 1))[0]
            passage = rng.choice(WORDS) if kind == "good" else kind and f"{kind} the red fox"
            number = len(rows)
            row = {"query_id": f"q{query}", "query": f"red fox {query}", "passage": passage}
            rows.append(row | {"id": number + 1000})
    if rng.random() < 0.3:
        rng.choice(rows)["passage"] = "segfault fox"
    return rows


def _in_lists(rows: Rows) -> Rows:
    lists: dict[str, dict[str, Any]] = {}
    for row in rows:
        new = {key: row[key] for key in ("query_id", "query", "id")} | {"passages": []}
        lists.setdefault(row["query_id"], new)["passages"].append(row["passage"])
    return list(lists.values())


def _write(file: Path, rows: Rows, rng: random.Random) -> None:
    if file.suffix == ".jsonl":
        blank = rng.choice(("", "\n"))
        file.write_text("".join(json.dumps(row) + "\n" + blank for row in rows), encoding="utf-8")
        return
    table = pa.Table.from_pylist(rows)
    if rng.random() < 0.5:  # as other writers declare texts
        field = table.schema.get_field_index("query")
        table = table.set_column(field, "query", table["query"].cast(pa.large_string()))
    size = rng.randint(1, len(rows))
    pq.write_table(table, file, row_group_size=size, write_page_checksum=True)


def _check(output: Path, rows: Rows, *, lists: bool) -> None:
    """Each row is in the results or the errors, once, with its score, rank and reason."""
    scorer = WordOverlapScorer()
    expected: dict[int, list[float]] = {}
    reasons: dict[int, str] = {}
    for number, row in enumerate(rows):
        texts = row["passages"] if lists else [row["passage"]]
        bad = {text and text.partition(" ")[0] for text in texts} & ERRORS.keys()
        if bad:  # no text is found first; else the worker dies, or the scorer fails
            first = next(kind for kind in (None, "segfault", "raise", "nan") if kind in bad)
            reasons[number] = ERRORS[first]
        else:
            expected[number] = scorer.score([(row["query"], text) for text in texts]).tolist()
    found = sorted(pq.read_table(output / "results").to_pylist(), key=lambda row: row["row"])
    assert [row["row"] for row in found] == sorted(expected), (reasons, _failed(output))
    groups: dict[Any, list[tuple[float, int, int]]] = {}
    for row in found:
        number = row["row"]
        one = [row["raw_score"]], [row["rank"]]
        scores, ranks = (row["raw_score"], row["rank"]) if lists else one
        assert scores == expected[number], row
        assert str(row["id"]) == str(rows[number]["id"])
        for place, (score, rank) in enumerate(zip(scores, ranks, strict=True)):
            groups.setdefault(row["query_id"], []).append((-score, number * 100 + place, rank))
    for group in groups.values():
        assert [rank for _, _, rank in sorted(group)] == list(range(1, len(group) + 1))
    failed = _failed(output)
    assert len(failed) == len(reasons)
    assert {row["row"]: row["error"] for row in failed} == reasons
    assert not (output / "scratch").exists()


def _failed(output: Path) -> Rows:
    files = sorted((output / "errors").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def _read_damaged(file: Path, rng: random.Random, counts: Counter[str]) -> None:
    whole, wanted = file.read_bytes(), _read(file)
    for _ in range(20):
        damaged = bytearray(whole[: rng.choice((len(whole), rng.randint(1, len(whole))))])
        for _ in range(rng.randint(0, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            same = _read(file) == wanted
        except InvalidInputError:
            counts["damaged files that were refused"] += 1
        else:
            counts[f"damaged files that gave {'the same' if same else 'other'} rows"] += 1


def _read(file: Path) -> list[Any]:
    layout, _ = read_layout([file], Columns(carry=("id",)))
    reader = RowReader(layout)
    shards = cut_into_shards([file], layout, shard_rows=5)
    return [row.values for shard in shards for row in reader.read(shard)]


if __name__ == "__main__":
    run_campaign("Ray Data", campaign, size=60)
