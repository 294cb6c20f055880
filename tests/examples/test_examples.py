"""The examples, run as a reader runs them, and the judged corpus they stand on."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from first_stage import open_first_stage

from bge_rerank_integrations import load_reranker
from tests.docs.printed import assert_shown
from tests.docs.test_docs_snippets import blocks
from tests.examples.language_model import LanguageModelServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUESTION = "What researcher first used the word oxygen ?"
ANSWER = "The name oxygen was coined in 1777 by Antoine Lavoisier"


def lines_of(name: str) -> list[dict[str, str]]:
    text = (EXAMPLES / "corpus" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def run_example(program: str, *options: str, cache: Path, **variables: str) -> str:
    """What the program prints, with nothing but `cache` for models and no network to ask."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *options],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        | {"PYTHONIOENCODING": "utf-8", **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_corpus_is_whole_and_judged() -> None:
    passages = {row["id"]: row["text"] for row in lines_of("corpus")}
    questions = {row["id"]: row["text"] for row in lines_of("queries")}
    header, *rows = (EXAMPLES / "corpus" / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    judged = [row.split("\t") for row in rows]
    assert (len(passages), len(questions), len(judged)) == (1175, 100, 100)
    assert header.split("\t") == ["query-id", "corpus-id", "score"]
    assert {question for question, _, _ in judged} == set(questions)
    assert {passage for _, passage, _ in judged} <= set(passages)
    (relevant,) = [p for question, p, _ in judged if questions[question] == QUESTION]
    assert passages[relevant].startswith(ANSWER)
    said = (EXAMPLES / "corpus" / "README.md").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in said
    assert "Artetxe" in said


def test_the_demo_mends_the_order_in_both_frameworks_alike(tmp_path: Path) -> None:
    printed = run_example("demo.py", cache=tmp_path)
    assert printed.startswith("Model: offline, the embedded ms-marco-MiniLM-L-12-v2")
    assert "--model BAAI/bge-reranker-v2-m3" in printed
    questions = printed.split("\nQuestion: ")[1:]
    assert len(questions) == 2
    for shown, (was, answer) in zip(
        questions, ((8, "According to the 1901 census"), (12, ANSWER)), strict=True
    ):
        assert f"Before: the relevant sentence is at rank {was} of 20" in shown
        for framework in ("LlamaIndex", "LangChain"):
            after = shown.split(f"After, {framework}: ")[1].splitlines()
            assert after[0] == "the relevant sentence is at rank 1 of 20"
            first = re.fullmatch(r"  \*  1 was +(\d+) +([01]\.\d+)  (.+)", after[1])
            assert first is not None
            assert int(first[1]) == was
            assert float(first[2]) > 0.5
            assert first[3].startswith(answer)
        assert "Both frameworks give the same order and scores: yes" in shown
    measured = re.findall(
        r"(before|after) +relevant sentence first: +(\d+) +nDCG@10: (.+)", printed
    )
    assert [name for name, _, _ in measured] == ["before", "after"]
    (_, first_before, before), (_, first_after, after_) = measured
    assert (int(first_before), float(before)) == (66, 0.79)
    assert int(first_after) >= 80
    assert float(after_) >= 0.87
    for readme in ("README.md", "README.zh.md"):
        (block,) = [
            b.code for b in blocks(EXAMPLES.parent / readme, {"text"}) if "Measuring" in b.code
        ]
        # another processor may count otherwise
        assert_shown(re.sub(r"\d[\d.]*", "#", block), re.sub(r"\d[\d.]*", "#", printed))


@pytest.mark.parametrize("program", ["llama_index_query_engine.py", "langchain_retriever.py"])
def test_a_framework_puts_the_answer_before_its_llm(program: str, tmp_path: Path) -> None:
    printed = run_example(program, QUESTION, cache=tmp_path)
    scores, texts = shown(printed)
    assert len(texts) == 3
    assert texts[0].startswith(ANSWER)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.95
    prompt = printed.partition("LLM ")[2]
    places = [prompt.index(text) for text in texts]
    assert places == sorted(places), "the LLM gets the passages in their new order"
    assert QUESTION in prompt


@pytest.mark.parametrize("program", ["langchain_agent.py", "llama_index_agent.py"])
def test_an_agent_reads_what_its_tool_reranked(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_MODEL", raising=False)
    printed = run_example(program, QUESTION, cache=tmp_path)
    assert "LLM: a stand-in; set OPENAI_MODEL for another." in printed
    found = re.findall(r"^  (0\.\d{4})  (.+)$", printed, flags=re.MULTILINE)
    scores = [float(score) for score, _ in found]
    assert len(found) == 3
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.95
    assert found[0][1].startswith(ANSWER)
    assert printed.endswith(f"\nAnswer: {found[0][1]}\n")
    with LanguageModelServer(condensed="Pandas eat bamboo [1].") as server:
        variables = {
            "OPENAI_MODEL": "small",
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "k",
        }
        printed = run_example(program, QUESTION, cache=tmp_path, **variables)
    assert "LLM: small\n" in printed
    assert printed.endswith("\nAnswer: Pandas eat bamboo [1].\n")
    (request,) = server.requests
    assert [tool["function"]["name"] for tool in request["tools"]] == ["search"]
    assert request["messages"][-1]["content"] == QUESTION


def shown(printed: str) -> tuple[list[float], list[str]]:
    """Scores and texts of the passages that a program lists."""
    found = re.findall(r"^  (0\.\d{4}) \(raw .+\)\n    (.+)$", printed, flags=re.MULTILINE)
    return [float(score) for score, _ in found], [text for _, text in found]


def test_the_embedder_can_be_the_first_stage(tmp_path: Path) -> None:
    program = "langchain_retriever.py"
    printed = run_example(program, QUESTION, "--first-stage", "embedder", cache=tmp_path)
    scores, texts = shown(printed)
    assert texts[0].startswith(ANSWER)
    found = re.findall(r"embedder (\d\.\d\d)\)", printed)
    assert len(found) == len(scores) == 3
    assert all(0.5 < float(cosine) < 1 for cosine in found)


def test_a_bge_reranker_on_this_machine_is_preferred(tmp_path: Path, reranker_base: Path) -> None:
    repository = tmp_path / "models--BAAI--bge-reranker-base"
    commit = "0" * 40
    shutil.copytree(reranker_base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    printed = run_example("langchain_retriever.py", cache=tmp_path)
    assert printed.startswith(
        "Model: BAAI/bge-reranker-base (a BGE reranker found on this machine); "
        "--model offline is the embedded one."
    )
    assert len(shown(printed)[1]) == 3
    asked = run_example("langchain_retriever.py", "--model", "offline", cache=tmp_path)
    assert asked.startswith("Model: offline")


def test_ray_data_scores_the_candidates_of_many_questions(tmp_path: Path) -> None:
    asked = ("--model", "offline", "--output", str(tmp_path / "out"), "--questions", "10")
    printed = run_example("ray_data_batch.py", *asked, cache=tmp_path)
    assert "200 pairs in 2 shards, 0 done before\n0 rows could not be scored" in printed
    right = re.search(r"relevant sentence first: (\d+) of 10 questions", printed)
    assert right is not None
    assert int(right[1]) >= 7
    again = run_example("ray_data_batch.py", *asked, cache=tmp_path)
    assert f"200 pairs in 2 shards, 2 done before\n0 rows could not be scored\n{right[0]}" in again


def test_two_llama_index_clients_ask_a_tei_server(tmp_path: Path) -> None:
    printed = run_example("tei_llama_index.py", "--model", "offline", QUESTION, cache=tmp_path)
    _, theirs, ours = printed.split(QUESTION)
    line = re.compile(r"^  (0\.\d{4})  (.+?)(?: \(raw ([+-]\d+\.\d\d)\))?$", re.MULTILINE)
    expected = [(score, text) for score, text, _ in line.findall(theirs)]
    assert len(expected) == 3
    assert expected[0][1].startswith(ANSWER)
    found = line.findall(ours)
    assert [(score, text) for score, text, _ in found] == expected
    for score, _, logit in found:
        assert 1 / (1 + math.exp(-float(logit))) == pytest.approx(float(score), abs=2e-3)


def test_langchain_s_cohere_client_asks_ray_serve(tmp_path: Path) -> None:
    printed = run_example("ray_serve_langchain.py", "--model", "offline", QUESTION, cache=tmp_path)
    found = re.findall(r"^  (0\.\d{4})  (.+)$", printed, flags=re.MULTILINE)
    assert len(found) == 3
    assert found[0][1].startswith(ANSWER)
    assert float(found[0][0]) > 0.95


def test_fastapi_workers_stream_candidates_and_then_the_best(tmp_path: Path) -> None:
    found = [passage.text for passage, _ in open_first_stage("bm25").candidates([QUESTION], 20)[0]]
    results = load_reranker("offline", top_n=3).rerank(QUESTION, found)
    command = ["-m", "uvicorn", "fastapi_service:app", "--workers", "2", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        | {"PYTHONPATH": str(EXAMPLES), "PYTHONIOENCODING": "utf-8"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert server.stderr is not None
    try:
        said = ""
        while said.count("startup complete") < 2:  # of both workers
            said += next(server.stderr)
        address = re.findall(r"running on (http://\S+)", said)[0]
        url = f"{address}/search?{urlencode({'query': QUESTION})}"
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: urlopen(url, timeout=60).read(), range(4)))
    finally:
        server.terminate()
        server.communicate()
    for answer in answers:
        first, second = map(json.loads, answer.decode().splitlines())
        assert first == {"candidates": found[:3]}
        assert [one["text"] for one in second["best"]] == [found[r.index] for r in results]
        assert [one["score"] for one in second["best"]] == pytest.approx(
            [result.score for result in results], abs=1e-6
        )
