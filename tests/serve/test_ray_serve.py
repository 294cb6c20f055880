"""The served reranker on a cluster, asked by LlamaIndex's, LangChain's and our own clients."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from pydantic import SecretStr, ValidationError

from bge_rerank_integrations import load_reranker, load_scorer
from bge_rerank_integrations.errors import RemoteRefused
from tests.ray.processes import KEY, KEY_VARIABLE, replicas, running
from tests.serve.clients import CLIENTS, PASSAGES, QUERY

SERVED_NAME = "rerank-panda"
BOUNDS = {"max_passages": 8, "max_batch_pairs": 8, "max_waiting_pairs": 16}


class Served(NamedTuple):
    url: str
    metrics: str


@pytest.fixture(scope="module")
def served(cluster: dict[str, str]) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "model": "offline",
        "served_names": ["rerank-panda"],
        "api_key_variable": KEY_VARIABLE,
        "special_tokens": "error",
        "cpus": 0.5,
        **BOUNDS,
    }
    with running("tests.serve.serve_run", str(port), json.dumps(settings), env=cluster) as printed:
        last = ""
        for line in printed:
            last = line
            if line.startswith("up "):
                break
        assert last.startswith("up "), last
        yield Served(f"http://127.0.0.1:{port}", f"http://{last.split()[1]}/metrics")


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """What each passage scores here, in this process."""
    results = load_reranker("offline").rerank(QUERY, PASSAGES)
    return {PASSAGES[result.index]: result.score for result in results}


def ask(served: Served, path: str, body: Any, key: str = KEY) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(served.url + path, content=content, headers=headers, timeout=60)


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.1) for text in PASSAGES]


def test_llama_index_reads_its_tei_answers(served: Served, expected: dict[str, float]) -> None:
    client = TextEmbeddingInference(base_url=served.url, auth_token=f"Bearer {KEY}", top_n=3)
    ranked = client.postprocess_nodes(nodes(), QueryBundle(QUERY))
    assert ranked[0].node.get_content() == PASSAGES[1]
    assert {n.node.get_content(): n.score for n in ranked} == pytest.approx(expected, abs=1e-6)


def test_llama_index_reads_its_jina_answers(served: Served, expected: dict[str, float]) -> None:
    client = JinaRerank(base_url=f"{served.url}/v1", api_key=KEY, model="rerank-panda", top_n=2)
    with client._session:  # which the client leaves open
        ranked = client.postprocess_nodes(nodes(), QueryBundle(QUERY))
    assert [n.node.get_content() for n in ranked] == sorted(PASSAGES, key=expected.__getitem__)[
        :0:-1
    ]
    assert ranked[0].score == pytest.approx(expected[PASSAGES[1]], abs=1e-6)


def test_langchain_reads_its_cohere_answers(served: Served, expected: dict[str, float]) -> None:
    client = CohereRerank(
        base_url=served.url, cohere_api_key=SecretStr(KEY), model="rerank-panda", top_n=3
    )
    with client.client:
        ranked = client.compress_documents([Document(text) for text in PASSAGES], QUERY)
    scores = {d.page_content: d.metadata["relevance_score"] for d in ranked}
    assert scores == pytest.approx(expected, abs=1e-6)
    assert ranked[0].page_content == PASSAGES[1]


@pytest.mark.parametrize("dialect", ["auto", "tei", "vllm"])
def test_our_own_client_has_the_local_model_s_logits(served: Served, dialect: str) -> None:
    many = [f"{text} {number}" for number in range(9) for text in PASSAGES]  # four requests
    pairs = [(QUERY, text) for text in many]
    with load_scorer(served.url, api_key=KEY, dialect=dialect, batch_size=8) as scorer:
        remote = scorer.score(pairs)
    assert np.abs(remote - load_scorer("offline").score(pairs)).max() < 1e-5


def test_two_rerankers_stand_beside_each_other(served: Served, expected: dict[str, float]) -> None:
    assert httpx.get(f"{served.url}/second/health", timeout=60).json() == {"status": "ok"}
    assert ask(served, "/second/secret", {}).status_code == 404
    for base, own, other in (("", "rerank-panda", "second"), ("/second", "second", "rerank-panda")):
        body = {"query": QUERY, "documents": PASSAGES, "model": own}
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            results = ask(served, base + path, body).json()["results"]
            scores = {PASSAGES[item["index"]]: item["relevance_score"] for item in results}
            assert scores == pytest.approx(expected, abs=1e-6)
        assert ask(served, f"{base}/rerank", body | {"model": other}).status_code == 404
    with load_scorer(f"{served.url}/second", api_key=KEY) as scorer:
        scores_ = scorer.score([(QUERY, text) for text in PASSAGES])
    assert (
        np.abs(scores_ - load_scorer("offline").score([(QUERY, t) for t in PASSAGES])).max() < 1e-5
    )


def test_the_names_of_the_model_are_listed(served: Served) -> None:
    for path in ("/v1/models", "/models"):
        listed = httpx.get(served.url + path, headers={"authorization": f"Bearer {KEY}"}).json()
        assert [model["id"] for model in listed["data"]] == ["offline", "rerank-panda"]
    assert httpx.get(f"{served.url}/v1/models").status_code == 401


def test_a_limit_is_refused_only_where_it_changes_a_score(
    served: Served, expected: dict[str, float]
) -> None:
    long = ["panda " * 600]
    for options, fits, long_too in (
        ({"texts": PASSAGES, "truncate": False}, True, False),
        ({"documents": PASSAGES, "max_tokens_per_doc": 4096}, True, True),
        ({"documents": PASSAGES, "max_tokens_per_doc": 3}, False, False),
    ):
        key = next(iter(options))
        for passages, answered in ((PASSAGES, fits), (long, long_too)):
            answer = ask(served, "/rerank", {"query": QUERY, **options, key: passages})
            assert answer.status_code == (200 if answered else 422), answer.text
    usage = ask(served, "/rerank", {"query": "a b", "documents": ["c d e"]}).json()["usage"]
    assert usage == {"prompt_tokens": 5, "total_tokens": 5}


INSTALLED = Path(__file__).parents[2] / ".venv-clients"


@pytest.fixture(scope="module")
def answers(served: Served) -> dict[str, dict[str, float] | str]:
    """What each client of `clients.py` reads, all in one process."""
    path = f"{INSTALLED}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.serve.clients", served.url, KEY, SERVED_NAME],
        cwd=INSTALLED.parent,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(map(json.loads, lines))


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs `make .venv-clients/ready`")
@pytest.mark.parametrize("client", CLIENTS)
def test_clients_of_other_projects_read_its_answers(
    answers: dict[str, dict[str, float] | str], expected: dict[str, float], client: str
) -> None:
    scores = answers[client]
    assert not isinstance(scores, str), scores
    assert scores == pytest.approx(expected, abs=1e-6)


def test_our_own_client_speaks_jina_with_it(served: Served, expected: dict[str, float]) -> None:
    with load_scorer("rerank-panda", base_url=served.url, api_key=KEY, dialect="jina") as scorer:
        scores = scorer.score([(QUERY, text) for text in PASSAGES])
    assert scores.tolist() == pytest.approx([expected[text] for text in PASSAGES], abs=1e-6)


def test_without_the_key_there_is_only_health(served: Served) -> None:
    assert httpx.get(f"{served.url}/health", timeout=60).json() == {"status": "ok"}
    body = {"query": QUERY, "texts": PASSAGES}
    for key in ("-", "wrong", KEY[:-1], KEY + "x"):
        refused = ask(served, "/rerank", body, key)
        assert refused.status_code == 401
        assert KEY not in refused.text
    assert httpx.get(f"{served.url}/info", timeout=60).status_code == 401
    with pytest.raises(RemoteRefused):
        load_scorer(served.url, api_key="wrong", dialect="tei").score([(QUERY, "a")])


def test_what_is_wrong_with_a_request_is_said_without_its_text(served: Served) -> None:
    for body, status in (
        (b"{secret", 400),
        ({"query": QUERY, "documents": ["secret"], "model": "gpt-secret-is-not-here"}, 404),
        ({"query": QUERY, "texts": ["secret"] * 9}, 422),
        ({"query": QUERY, "texts": ["secret [SEP]"]}, 422),  # special_tokens="error"
        (b" " * 8_000_001, 413),
    ):
        refused = ask(served, "/rerank", body)
        assert (refused.status_code, "secret" in refused.text) == (status, False), refused.text
    assert ask(served, "/secret", {}).status_code == 404


def test_a_flood_is_answered_in_full_or_with_429_and_never_wrong(served: Served) -> None:
    texts = [f"the panda is bear number {number}" * 40 for number in range(8)]
    raw = load_scorer("offline").score([(QUERY, text) for text in texts])
    body = {"query": QUERY, "texts": texts, "raw_scores": True}
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: ask(served, "/rerank", body), range(72)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error_type"] == "Overloaded"
        else:
            scores = {item["index"]: item["score"] for item in answer.json()}
            assert [scores[place] for place in range(8)] == pytest.approx(raw.tolist(), abs=1e-4)
    # and nothing that was refused is still counted
    assert ask(served, "/rerank", body).status_code == 200


@pytest.mark.parametrize("deployment", ["model", "front"])
def test_a_replica_that_dies_under_load_costs_no_answer(
    served: Served, expected: dict[str, float], deployment: str
) -> None:
    """Each request is answered rightly or with 503 in JSON, while a replica is killed twice."""
    body = {"query": QUERY, "documents": PASSAGES}
    answered, killed = threading.Semaphore(0), []

    def send(_: int) -> httpx.Response:
        answer = ask(served, "/second/rerank", body)
        answered.release()
        return answer

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(send, number) for number in range(120)]
        for count in (8, 40):
            for _ in range(count):
                answered.acquire()
            (process,) = replicas(f"second:{deployment}")
            os.kill(process, signal.SIGKILL)
            killed.append(process)
    for answer in [done.result() for done in answers]:
        assert answer.headers["content-type"] == "application/json"
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["error_type"] == "Unavailable"
            continue
        scores = {PASSAGES[r["index"]]: r["relevance_score"] for r in answer.json()["results"]}
        assert answer.status_code == 200
        assert scores == pytest.approx(expected, abs=1e-6)
    assert len(set(killed)) == 2
    assert ask(served, "/second/rerank", body).status_code == 200


def test_metrics_are_ray_s(served: Served) -> None:
    ask(served, "/rerank", {"query": QUERY, "texts": PASSAGES})
    wanted = re.compile(
        r'^ray_bge_rerank_requests_total\{.*status="200".*\} ([\d.]+)', re.MULTILINE
    )
    names = ("batch_pairs_bucket", "batch_seconds_count", "waiting_pairs")
    page = ""
    # replicas report every half second, each for itself
    while not wanted.search(page) or not all(f"ray_bge_rerank_{name}" in page for name in names):
        page = httpx.get(served.metrics, timeout=60).text
    assert float(wanted.findall(page)[0]) >= 1


def test_a_text_that_cannot_be_scored_is_not_its_batch_s_error(
    served: Served, expected: dict[str, float]
) -> None:
    good, bad = {"query": QUERY, "texts": PASSAGES[:1]}, {"query": QUERY, "texts": ["[SEP]"]}
    with ThreadPoolExecutor(14) as pool:
        answers = list(pool.map(lambda body: ask(served, "/rerank", body), [good, bad] * 21))
    for body, answer in zip([good, bad] * 21, answers, strict=True):
        assert answer.status_code == (200 if body is good else 422)
        if body is good:
            assert answer.json()[0]["score"] == pytest.approx(expected[PASSAGES[0]], abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own classes
def test_settings_are_refused_before_anything_is_served() -> None:
    from bge_rerank_integrations.serve.app import ServeSettings

    with pytest.raises(ValidationError, match="must not decrease"):
        ServeSettings(max_passages=10, max_batch_pairs=5)
    with pytest.raises(ValidationError, match="max_passage"):
        ServeSettings(max_passage=10)  # type: ignore[call-arg]
    assert ServeSettings(model="a/b", served_names=("c",)).names() == ("a/b", "c")
