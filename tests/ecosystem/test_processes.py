"""Other processes: gunicorn's forked workers, and children that multiprocessing spawns."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from tests.ecosystem.passages import QUERY, TEXTS

ROOT = Path(__file__).resolve().parents[2]
LISTENING = re.compile(r"Listening at: (http://\S+)")


@contextmanager
def gunicorn(model: Path, *, loaded: bool) -> Iterator[str]:
    """The address of a server with two workers, forked from a process that imported the app."""
    variables = {"MODEL": str(model), "LOADED": str(int(loaded)), "OMP_NUM_THREADS": "1"}
    command = ["-m", "gunicorn", "--preload", "--workers=2", "--bind=127.0.0.1:0", "--timeout=120"]
    server = subprocess.Popen(
        [sys.executable, *command, "tests.ecosystem.gunicorn_app:app"],
        cwd=ROOT,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if found := LISTENING.search(line):
                break
        else:
            pytest.fail("".join(said))
        yield found[1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()


def asked(address: str) -> dict[str, Any]:
    with urlopen(address, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn forks")
@pytest.mark.parametrize("loaded", [False, True])
def test_gunicorn_workers_score_as_this_process_does(reranker_base: Path, loaded: bool) -> None:
    here = Compressor(model=str(reranker_base), device="cpu", top_n=3).compress_documents(
        [Document(page_content=text) for text in TEXTS], QUERY
    )
    with gunicorn(reranker_base, loaded=loaded) as address, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(asked, [address] * 12))
    for answer in answers:
        assert [text for text, _ in answer["ranking"]] == [d.page_content for d in here]
        assert [score for _, score in answer["ranking"]] == pytest.approx(
            [document.metadata["relevance_score"] for document in here], abs=1e-5
        )


def _ranked_nodes(reranker: Postprocessor, texts: list[str]) -> list[tuple[str, float]]:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    return [(n.text, n.score or 0.0) for n in reranker.postprocess_nodes(nodes, query_str=QUERY)]


def _ranked_documents(reranker: Compressor, texts: list[str]) -> list[tuple[str, float]]:
    documents = [Document(page_content=text) for text in texts]
    return [
        (document.page_content, document.metadata["relevance_score"])
        for document in reranker.compress_documents(documents, QUERY)
    ]


def test_adapters_travel_to_spawned_processes(reranker_base: Path) -> None:
    settings: dict[str, Any] = {"model": str(reranker_base), "device": "cpu"}
    nodes, documents = Postprocessor(**settings), Compressor(**settings)
    encoder = BGECrossEncoder(**settings)
    pairs = [(QUERY, text) for text in TEXTS]
    # loaded and used here, so that what travels is not just what was given
    expected = [dict(_ranked_nodes(nodes, TEXTS)), dict(_ranked_documents(documents, TEXTS))]
    scores = encoder.score(pairs)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [
            dict(pool.submit(_ranked_nodes, nodes, TEXTS).result()),
            dict(pool.submit(_ranked_documents, documents, TEXTS).result()),
        ]
        assert pool.submit(encoder.score, pairs).result() == pytest.approx(scores, abs=1e-5)
    assert [list(ranking) for ranking in found] == [list(ranking) for ranking in expected]
    for here, there in zip(expected, found, strict=True):
        assert there == pytest.approx(here, abs=1e-5)
