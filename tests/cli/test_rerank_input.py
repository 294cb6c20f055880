"""`bge-rerank rerank`: which input is read as what, and what is refused rather than scored."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import bge_rerank_integrations
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.errors import UnreadableInput
from tests.cli.command import COMMAND, ENVIRONMENT, json_lines, run, to_json_lines

NO_MODEL = "./no/such/model"
QUERY = "What is a panda?"
ROWS = [{"text": "A panda is a bear.", "id": 1}, {"text": "Water boils.", "id": 2}]


def invoke(*arguments: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["rerank", QUERY, *map(str, arguments)], input=stdin)


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".NDJSON"])
def test_the_name_says_that_lines_are_json(
    reranker_base: Path, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"passages{ending}"
    file.write_text(to_json_lines(ROWS), encoding="utf-8")
    rows = json_lines(invoke("--file", file, "--model", reranker_base).stdout)
    assert sorted((row["id"], row["passage"]) for row in rows) == [
        (1, "A panda is a bear."),
        (2, "Water boils."),
    ]


def test_one_document_of_json_is_refused_unless_its_lines_are_meant(
    reranker_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "passages.json"
    file.write_text(to_json_lines(ROWS), encoding="utf-8")
    refused = invoke("--file", file, "--model", NO_MODEL)
    assert isinstance(refused.exception, UnreadableInput)
    assert f"{file} is named as one JSON document" in str(refused.exception)
    assert "give --jsonl if the file already has that form" in str(refused.exception)
    taken = invoke("--file", file, "--jsonl", "--model", reranker_base)
    assert {row["id"] for row in json_lines(taken.stdout)} == {1, 2}


def test_json_that_is_read_as_text_is_said_once(reranker_base: Path) -> None:
    done = run("rerank", QUERY, "--model", str(reranker_base), stdin=to_json_lines(ROWS))
    assert done.returncode == 0
    assert {row["passage"] for row in json_lines(done.stdout)} == {json.dumps(row) for row in ROWS}
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "bge-rerank: each of the 2 lines of standard input is a JSON object"
    )
    assert "--jsonl" in done.stderr


@pytest.mark.parametrize(
    "stdin", ['{"text": "a"}\nplain text\n', '{"text": "a"\n', '"a"\n', '{"a": 1} {"b": 2}\n']
)
def test_lines_that_are_not_all_objects_are_text(
    reranker_base: Path, stdin: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = invoke("--model", reranker_base, stdin=stdin)
    assert {row["passage"] for row in json_lines(result.stdout)} == set(stdin.splitlines())
    assert caplog.records == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused_and_not_quoted(encoding: str) -> None:
    result = invoke("--model", NO_MODEL, stdin="secret\nsecret\n".encode(encoding))
    assert isinstance(result.exception, UnreadableInput)
    assert "line 1 of standard input holds a NUL byte" in str(result.exception)
    assert "save the input as UTF-8" in str(result.exception)
    assert "secret" not in str(result.exception)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    line = f'{{"text": "a", "weight": {number}}}\n'
    result = invoke("--jsonl", "--model", NO_MODEL, stdin=line)
    assert isinstance(result.exception, UnreadableInput)
    assert f"line 1 of standard input is not JSON that can be read: {number} is" in str(
        result.exception
    )


def test_numbers_that_json_has_are_carried_as_they_were(reranker_base: Path) -> None:
    row = {"text": "a", "weight": -0.1, "count": 10**20, "none": None}
    result = invoke("--jsonl", "--model", reranker_base, stdin=to_json_lines([row]))
    (found,) = json_lines(result.stdout)
    assert {key: found[key] for key in ("weight", "count", "none")} == {
        key: row[key] for key in ("weight", "count", "none")
    }


def test_an_earlier_runs_unscored_is_not_carried_on(reranker_base: Path) -> None:
    left = {"index": 0, "score": None, "raw_score": None, "scored": False, "passage": "a", "id": 7}
    (row,) = json_lines(
        invoke("--jsonl", "--model", reranker_base, stdin=to_json_lines([left])).stdout
    )
    assert row.keys() == {"index", "score", "raw_score", "passage", "id"}
    assert 0 < row["score"] < 1
    assert row["id"] == 7


def test_a_calibration_that_is_not_there_is_input_that_cannot_be_read() -> None:
    done = run("rerank", QUERY, "a", "--calibration", "./nowhere.json", "--model", NO_MODEL)
    assert done.returncode == 2
    assert "nowhere.json" in done.stderr


def test_a_module_of_our_own_that_is_missing_is_not_a_missing_extra(tmp_path: Path) -> None:
    package = Path(bge_rerank_integrations.__file__).parent
    damaged = tmp_path / package.name
    shutil.copytree(package, damaged, ignore=shutil.ignore_patterns("__pycache__"))
    (damaged / "cli" / "batch.py").unlink()
    done = subprocess.run(
        [*COMMAND[:1], "-P", *COMMAND[1:], "--help"],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, sys.executable
    assert "No module named 'bge_rerank_integrations.cli.batch'" in done.stderr
    assert "pip install" not in done.stderr


def test_columns_are_named_by_options(reranker_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "faq.csv"
    file.write_text("key;question;answer\n7;Panda?;A panda is a bear.\n8;Water?;It boils.\n")
    result = invoke(
        *("--file", file, "--model", reranker_base, "--text-field", "answer", "--id-field", "key")
    )
    rows = {row["id"]: row for row in json_lines(result.stdout)}
    assert {key: row["passage"] for key, row in rows.items()} == {
        "7": "A panda is a bear.",
        "8": "It boils.",
    }
    assert rows["7"]["question"] == "Panda?"
