"""The served reranker on a cluster, asked by LlamaIndex's, LangChain's and our own clients."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from tests.ray.processes import KEY, KEY_VARIABLE, running

QUERY = "what is a panda?"
PASSAGES = ["Water boils at 100 degrees.", "The panda is a bear.", "A fox is red."]
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


def test_metrics_are_ray_s(served: Served) -> None:
    ask(served, "/rerank", {"query": QUERY, "texts": PASSAGES})
    wanted = re.compile(
        r'^ray_bge_rerank_requests_total\{.*status="200".*\} ([\d.]+)', re.MULTILINE
    )
    page = ""
    while not wanted.search(page):  # replicas report every half second
        page = httpx.get(served.metrics, timeout=60).text
    assert float(wanted.findall(page)[0]) >= 1
    for name in ("batch_pairs_bucket", "batch_seconds_count", "waiting_pairs"):
        assert f"ray_bge_rerank_{name}" in page


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
