"""`bge-rerank batch` as a user runs it, with a Ray of its own on this machine."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bge_rerank_integrations import load_reranker
from tests.cli.command import BARE_COMMAND, installation, json_lines, run, to_json_lines

REQUESTS: list[dict[str, Any]] = [
    {"query_id": 7, "query": "what is a panda?", "passages": ["water boils", "a panda is a bear"]},
    {"query_id": "b", "query": "who wrote it?", "passages": ["Ada Lovelace wrote it", "a red fox"]},
    {"query_id": "c", "query": "broken", "passages": ["good", None]},
    {"query_id": "d", "query": "nothing found", "passages": []},
]


def test_json_lines_come_back_as_parquet_and_a_second_call_finds_all_done(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text(to_json_lines(REQUESTS) + "{not json\n", encoding="utf-8")
    arguments = ("batch", str(source), "--output", str(out), "--model", "offline", "--cpus", "1")
    done = run(*arguments)
    assert done.returncode == 3, done.stderr
    (report,) = json_lines(done.stdout)
    assert (report["rows"], report["failed"], report["shards_before"]) == (5, 2, 0)
    assert "bge-rerank: 2 rows have no score" in done.stderr

    rows: list[dict[str, Any]] = pq.read_table(out / "results").to_pylist()
    assert [(row["row"], row["query_id"]) for row in rows] == [(0, "7"), (1, "b"), (3, "d")]
    reranker = load_reranker("offline")
    for row, request in zip(rows[:2], REQUESTS[:2], strict=True):
        results = reranker.rerank(str(request["query"]), list(request["passages"]))
        assert [row["rank"][result.index] for result in results] == [1, 2]
        by_place = sorted(results, key=lambda result: result.index)
        assert row["score"] == pytest.approx([result.score for result in by_place], abs=1e-6)
        assert row["raw_score"] == pytest.approx([r.raw_score for r in by_place], abs=1e-5)
    assert (rows[2]["score"], rows[2]["raw_score"], rows[2]["rank"]) == ([], [], [])
    errors = pq.read_table(out / "errors").to_pylist()
    assert [(row["row"], row["query_id"], row["error"]) for row in errors] == [
        (2, "c", "InvalidInputError"),
        (4, None, "InvalidInputError"),
    ]
    assert errors[0]["message"].startswith("the passage at position 1 is NoneType, not str")
    assert errors[1]["message"].startswith("the line is not JSON: ")

    again = run(*arguments)
    assert again.returncode == 3
    (report,) = json_lines(again.stdout)
    assert (report["shards"], report["shards_before"]) == (1, 1)
    assert "reranking" not in again.stderr, "no bar where the errors go to no terminal"

    more = tuple(str(tmp_path / "shown") if word == str(out) else word for word in arguments)
    shown = run(*more, "--shard-rows", "2", "--show-progress")
    assert shown.returncode == 3
    assert "reranking: 100%" in shown.stderr
    assert "5/5" in shown.stderr
    assert "failed=2" in shown.stderr

    source.write_text(to_json_lines(REQUESTS), encoding="utf-8")
    refused = run(*arguments)
    assert refused.returncode == 2
    assert "was created with another input" in refused.stderr
    assert refused.stdout == ""


def test_without_ray_the_command_names_its_extra(tmp_path: Path) -> None:
    without = installation(tmp_path, "typer", "numpy")
    (tmp_path / "in.jsonl").write_text(json.dumps(REQUESTS[0]), encoding="utf-8")
    done = run(
        *("batch", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")),
        command=BARE_COMMAND,
        **without,
    )
    assert done.returncode == 1
    assert 'pip install "bge-rerank-integrations[ray]"' in done.stderr
