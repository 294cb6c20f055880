"""Every dialect against its stand-in: the same scores, from any order, split or whole."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.errors import RemoteRefused
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.remote.serving import Served, serving
from tests.remote.stand_ins import KEY, MODEL, MODELS, STAND_INS, logit

ROOT = Path(__file__).resolve().parents[2]
QUERY = "what does the red fox eat"
PASSAGES = [
    "the sun is far",
    "the red fox does eat mice",
    "a red fox",
    "",
    "what the fox does",
    "the sun is near",
]
PAIRS = [(QUERY, passage) for passage in PASSAGES]


def scorer_of(name: str, served: Served, **options: object) -> RemoteScorer:
    given = {"model": MODELS.get(name, MODEL), "dialect": name} | options
    return RemoteScorer(served.url, **given)  # type: ignore[arg-type]


def test_every_dialect_has_a_stand_in_of_its_own() -> None:
    assert set(STAND_INS) == set(DIALECTS)
    assert len(DIALECTS) >= 20


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_scores_are_the_servers(name: str, batch_size: int | None) -> None:
    expected = np.array([logit(*pair) for pair in PAIRS])
    with (
        serving(name, key=KEY) as served,
        scorer_of(name, served, api_key=KEY, batch_size=batch_size) as scorer,
    ):
        if scorer.scale == "probability":
            expected = 1 / (1 + np.exp(-expected))
        found = scorer.score(PAIRS)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-6)
    sent = [body for method, _, _, body in served.requests if method == "POST"]
    assert len(sent) > math.ceil(len(PASSAGES) / (batch_size or 100)) - 1


@pytest.mark.parametrize("name", DIALECTS)
def test_the_key_goes_where_the_server_looks_for_it(name: str) -> None:
    with (
        serving(name, key=KEY) as served,
        scorer_of(name, served, api_key="sk-wrong") as wrong,
        pytest.raises(RemoteRefused, match="401 Unauthorized") as refused,
    ):
        wrong.score(PAIRS)
    assert KEY not in str(refused.value)
    assert "sk-wrong" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name, row in DIALECTS.items() if row.logits])
def test_logits_are_asked_for_where_there_are_any(name: str) -> None:
    """Two logits that a sigmoid in float32 would make one."""
    words = " ".join(f"w{number}" for number in range(21))
    pairs = [(words, words), (words, words.removesuffix(" w20"))]
    with serving(name) as served, scorer_of(name, served) as scorer:
        assert scorer.scale == "logit"
        assert scorer.score(pairs).tolist() == [19.5, 18.5]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "tei",
            {
                "query": "q",
                "texts": ["a", "b"],
                "truncate": True,
                "return_text": False,
                "raw_scores": True,
            },
        ),
        ("tei-predict", {"inputs": [["q", "a"], ["q", "b"]], "truncate": True, "raw_scores": True}),
        (
            "vllm-score",
            {
                "model": MODEL,
                "text_1": "q",
                "text_2": ["a", "b"],
                "truncate_prompt_tokens": -1,
                "activation": False,
                "use_activation": False,
            },
        ),
        (
            "nim",
            {
                "model": MODEL,
                "query": {"text": "q"},
                "passages": [{"text": "a"}, {"text": "b"}],
                "truncate": "END",
            },
        ),
        ("azure-hf", {"inputs": {"query": "q", "texts": ["a", "b"], "return_documents": False}}),
        (
            "pinecone",
            {
                "model": MODEL,
                "query": "q",
                "documents": [{"text": "a"}, {"text": "b"}],
                "return_documents": False,
                "rank_fields": ["text"],
                "parameters": {"truncate": "END"},
                "top_n": 2,
            },
        ),
        ("cloudflare", {"query": "q", "contexts": [{"text": "a"}, {"text": "b"}], "top_k": 2}),
    ],
)
def test_what_is_sent(name: str, body: object) -> None:
    with serving(name) as served, scorer_of(name, served) as scorer:
        scorer.score([("q", "a"), ("q", "b")])
    assert json.loads(served.requests[-1][3]) == body


def test_a_request_has_one_query_and_every_distinct_pair_once() -> None:
    pairs = [("a b", "a"), ("c", "c d"), ("a b", "b a"), ("a b", "a"), ("c", "e")]
    with serving("tei") as served, scorer_of("tei", served) as scorer:
        scorer.probe()
        tried = len(served.requests)
        assert scorer.score(pairs).tolist() == [-0.5, -0.5, 0.5, -0.5, -1.5]
    sent = [json.loads(body) for _, _, _, body in served.requests[tried:]]
    assert sorted((body["query"], body["texts"]) for body in sent) == [
        ("a b", ["a", "b a"]),
        ("c", ["c d", "e"]),
    ]


@pytest.mark.parametrize("status", [413, 422])
def test_a_server_that_takes_fewer_is_asked_in_halves(status: int) -> None:
    """The limit of text-embeddings-inference is a 413 before release 1.9, a 422 since."""
    few = replace(STAND_INS["tei"], most=(3, status))
    pairs = [("a b c", text) for text in ("a", "b x", "c y z", "a b", "a c", "b c q", "a b c")]
    with serving(few) as served, scorer_of("tei", served) as scorer:
        assert scorer.score(pairs).tolist() == [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 1.5]


def test_a_probability_is_the_servers_number_alone_and_among_equal_ones() -> None:
    """The stand-in puts the last of equal passages first; ties keep the caller's order."""
    backwards = replace(STAND_INS["cohere"], ties_reversed=True)
    texts = ["no", "red", "fox", "nothing", "red fox", "eat"]
    pairs = [("red fox eat", text) for text in texts]
    true = [np.float32(1 / (1 + math.exp(-logit(*pair)))) for pair in pairs]
    for size in (1, 5, 6):
        with serving(backwards) as served, scorer_of("cohere", served, batch_size=size) as scorer:
            assert scorer.score(pairs).tolist() == true
            best = Reranker(scorer).rerank("red fox eat", texts)
            assert [result.index for result in best] == [4, 1, 2, 5, 0, 3]


def test_azure_gets_its_deployment_and_pinecone_its_version() -> None:
    with (
        serving("azure-tei") as served,
        scorer_of("azure-tei", served, deployment="blue") as scorer,
    ):
        scorer.score(PAIRS)
    assert served.requests[-1][2]["azureml-model-deployment"] == "blue"
    assert "blue" in scorer.name
    with serving("pinecone") as served, scorer_of("pinecone", served) as scorer:
        scorer.score(PAIRS)
    assert served.requests[-1][2]["x-pinecone-api-version"] == "2025-10"
    with pytest.raises(InvalidInputError, match="tei has no deployments"):
        RemoteScorer("http://127.0.0.1:9", dialect="tei", deployment="blue")


@pytest.mark.parametrize("name", [name for name, row in DIALECTS.items() if row.needs_model])
def test_a_service_of_several_models_needs_to_be_told_which(name: str) -> None:
    with pytest.raises(InvalidInputError, match="name one with model="):
        RemoteScorer("http://127.0.0.1:9", dialect=name)


def test_the_servers_of_a_cloud_are_known_by_their_host() -> None:
    names = {
        "https://api.cohere.com": "cohere",
        "https://api.jina.ai/v1": "jina",
        "https://api.voyageai.com": "voyage",
        "https://api.siliconflow.cn": "siliconflow",
        "https://api.pinecone.io": "pinecone",
        "https://api.cloudflare.com/client/v4/accounts/1": "cloudflare",
    }
    for url, name in names.items():
        scorer = RemoteScorer(url, model="m", api_key="k")
        assert scorer.name == f"{name}:{url}[m]"
        assert scorer.scale == "probability"


def test_a_hosted_service_without_its_key_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services = {host: row for row in DIALECTS.values() for host in row.hosts}
    assert len(services) >= 7
    for host, row in services.items():
        monkeypatch.delenv(row.key_variable, raising=False)
        with pytest.raises(InvalidInputError, match=f"{host} needs a key.* set {row.key_variable}"):
            RemoteScorer(f"https://{host}", model="m")
        monkeypatch.setenv(row.key_variable, KEY)
        assert RemoteScorer(f"https://{host}", model="m").scale == "probability"
    # a gateway of one's own that speaks the same protocol may ask for none
    monkeypatch.delenv("COHERE_API_KEY")
    assert RemoteScorer("http://127.0.0.1:9", model="m", dialect="cohere").scale == "probability"


@pytest.mark.parametrize("model", ["bge-reranker-v2-m3", "pinecone-rerank-v0", "cohere-rerank-3.5"])
def test_pinecone_is_asked_to_truncate_by_models_that_can(model: str) -> None:
    with (
        serving(replace(STAND_INS["pinecone"], needs=("model", "rank_fields"))) as served,
        RemoteScorer(served.url, model=model, dialect="pinecone") as scorer,
    ):
        scorer.score(PAIRS)
    sent = json.loads(served.requests[-1][3])
    truncated = {"parameters": {"truncate": "END"}}
    assert {key: sent[key] for key in sent if key == "parameters"} == (
        {} if model.startswith("cohere") else truncated
    )
    assert sent["rank_fields"] == ["text"]


def test_the_documents_table_is_the_table() -> None:
    text = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    shown = [[cell.strip().strip("`") for cell in row] for row in rows if len(row) == 6]
    assert [row[0] for row in shown] == list(DIALECTS)
    for name, _, route, scale, most, key in shown:
        row = DIALECTS[name]
        found = (row.path, row.scale, str(row.max_documents), row.key_variable)
        assert (route, scale, most.split()[0], key) == found
