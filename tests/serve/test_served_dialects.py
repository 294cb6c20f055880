"""What a served reranker reads and answers, without a server."""

import json
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations.remote.dialects import DIALECTS, request_body
from bge_rerank_integrations.serve.protocol import (
    Refusal,
    RerankCall,
    answer_bytes,
    read_call,
    refuse_other_model,
    write_answer,
)

RAW = np.array([0.0, 2.0, -2.0, 2.0], dtype=np.float32)
HIGH, LOW = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))


def call(**asked: Any) -> RerankCall:
    return read_call(json.dumps(asked).encode(), max_passages=4)


def refusal(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as refused:
        read_call(body, max_passages=4)
    return refused.value


def test_tei_gets_every_passage_best_first_and_ties_as_sent() -> None:
    answer = write_answer(call(query="q", texts=list("abcd")), RAW, "logit", "m")
    assert [item["index"] for item in answer] == [1, 3, 0, 2]
    assert [item["score"] for item in answer] == pytest.approx([HIGH, HIGH, 0.5, LOW])
    assert all(item.keys() == {"index", "score"} for item in answer)


def test_raw_scores_and_texts_come_only_if_asked_for() -> None:
    asked = call(query="q", texts=list("abcd"), raw_scores=True, return_text=True)
    answer = write_answer(asked, RAW, "logit", "m")
    assert answer[0] == {"index": 1, "score": 2.0, "text": "b"}
    assert [item["score"] for item in answer] == [2.0, 2.0, 0.0, -2.0]


def test_cohere_and_jina_get_the_best() -> None:
    asked = call(
        query="q",
        documents=["a", {"text": "b"}, "c", "d"],
        top_n=2,
        return_documents=True,
        max_tokens_per_doc=None,
    )
    assert asked.passages == ["a", "b", "c", "d"]
    answer = write_answer(asked, RAW, "logit", "m")
    assert answer["model"] == "m"
    assert [item["index"] for item in answer["results"]] == [1, 3]
    assert answer["results"][0]["document"] == {"text": "b"}
    assert answer["results"][0]["relevance_score"] == pytest.approx(HIGH)


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"query": "q"}, 422, '"texts" or "documents"'),
        ({"query": "q", "texts": ["a"], "documents": ["a"]}, 422, '"texts" or "documents"'),
        ({"query": "q", "texts": []}, 400, "no passages"),
        ({"query": "q", "texts": "secret"}, 422, "not a list"),
        ({"query": "q", "texts": ["secret"] * 5}, 422, "5 passages are more than the 4"),
        ({"query": 7, "texts": ["secret"]}, 422, "the query is int"),
        ({"texts": ["secret"]}, 422, "the query is NoneType"),
        ({"query": "q", "documents": ["a", None]}, 422, "passage 1 is NoneType"),
        ({"query": "q", "documents": [{"title": "secret"}]}, 422, "passage 0 is NoneType"),
        ({"query": "q", "documents": ["a"], "top_n": 0}, 422, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": True}, 422, "top_n"),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}, 422, "max_tokens_per_doc"),
        ({"query": "q", "documents": ["a"], "rank_fields": ["x"]}, 422, "rank_fields"),
        ({"query": "q", "texts": ["a"], "truncate": False}, 422, '"truncate"'),
        ({"query": "q", "texts": ["a"], "truncation_direction": "Left"}, 422, "right"),
        ({"query": "q", "texts": ["a"], "raw_scores": "yes"}, 422, '"raw_scores" is str'),
        (
            {"query": "q", "documents": ["a"], "use_activation": "no"},
            422,
            '"use_activation" is str',
        ),
        ({"query": "q", "documents": ["a"], "activation": 0}, 422, '"activation" is int'),
        ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 9}, 422, "truncate_prompt"),
        ({"query": "q", "documents": ["a"], "truncate": "NONE"}, 422, '"truncate"'),
        ({"query": "q", "documents": ["a"], "truncate": "START"}, 422, '"truncate"'),
        ({"query": "q", "documents": ["a"], "truncation": False}, 422, '"truncation"'),
        (
            {"query": "q", "documents": ["a"], "parameters": {"truncate": "NONE"}},
            422,
            '"parameters"',
        ),
        ({"query": "q", "texts": ["a"], "instructions": "secret"}, 422, '"instructions"'),
        ({"query": "q", "texts": ["a"], "prompt": "secret"}, 422, '"prompt"'),
        ({"query": "q", "texts": ["a"], "normalize": False}, 422, '"normalize"'),
        ({"query": "q", "documents": ["a"], "top_k": 0}, 422, '"top_k" must be'),
        ({"query": "q", "texts": ["a"], "top_k": 1}, 422, '"top_k" is not supported with "texts"'),
        ({"query": "q", "texts": ["a"], "top_n": 1}, 422, '"top_n" is not supported with "texts"'),
    ],
)
def test_what_cannot_be_answered_as_asked_is_refused(
    asked: dict[str, Any], status: int, says: str
) -> None:
    refused = refusal(json.dumps(asked).encode())
    assert refused.status == status
    assert says in str(refused)
    assert "secret" not in json.dumps(refused.body())
    # each client looks under a name of its own
    assert refused.body()["error"] == refused.body()["detail"] == refused.body()["message"]


@pytest.mark.parametrize(
    "also",
    [
        {"truncate": True},
        {"truncate": "END"},
        {"truncation": True},
        {"truncation_direction": "Right"},
        {"parameters": {"truncate": "END"}},
        {"parameters": {}},
        {"normalize": True},
        {"use_activation": True},
        {"activation": True},
        {"truncate_prompt_tokens": -1},
        {"instructions": None},
        {"user": "somebody"},
    ],
    ids=str,
)
def test_what_asks_for_our_own_scores_is_answered(also: dict[str, Any]) -> None:
    assert call(query="q", documents=["a"], **also) == call(query="q", documents=["a"])


@pytest.mark.parametrize("key", ["use_activation", "activation"])
def test_vllm_s_clients_get_logits_without_an_activation(key: str) -> None:
    asked = call(query="q", documents=list("abcd"), **{key: False})
    scores = [one["relevance_score"] for one in write_answer(asked, RAW, "logit", "m")["results"]]
    assert scores == [2.0, 2.0, 0.0, -2.0]


def test_voyage_s_top_k_is_a_count_too() -> None:
    asked = call(query="q", documents=list("abcd"), top_k=2)
    assert [one["index"] for one in write_answer(asked, RAW, "logit", "m")["results"]] == [1, 3]
    assert call(query="q", documents=["a"], top_k=3, top_n=2).top_n == 2


@pytest.mark.parametrize(
    "dialect", ["tei", "sagemaker", "infinity", "vllm", "cohere", "jina", "voyage"]
)
@pytest.mark.parametrize("logits", [True, False])
def test_our_own_clients_requests_are_read(dialect: str, *, logits: bool) -> None:
    body = request_body(DIALECTS[dialect], "q", ["a", "b"], model="m", logits=logits)
    asked = call(**body)
    assert asked.passages == ["a", "b"]
    # those of a dialect that gives probabilities alone ask for nothing
    assert asked.raw == (logits and dialect in ("tei", "sagemaker", "infinity", "vllm"))
    assert asked.top_n in (None, 2)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_a_probability_is_not_shown_as_a_logit() -> None:
    raw = np.array([0.25, 0.5], dtype=np.float32)
    answer = write_answer(call(query="q", texts=["a", "b"]), raw, "probability", "m")
    assert [item["score"] for item in answer] == [0.5, 0.25]
    with pytest.raises(Refusal, match="no raw scores"):
        write_answer(call(query="q", texts=["a", "b"], raw_scores=True), raw, "probability", "m")


def test_another_model_is_refused() -> None:
    refuse_other_model(None, ("m", "alias"))
    refuse_other_model("alias", ("m", "alias"))
    with pytest.raises(Refusal, match="'m', 'alias' is") as refused:
        refuse_other_model("rerank-v3.5", ("m", "alias"))
    assert refused.value.status == 404


def test_half_a_surrogate_pair_is_a_replacement_character_there_and_back() -> None:
    asked = call(query="q", texts=["\ud800"], return_text=True)
    answer = write_answer(asked, RAW[:1], "logit", "m")
    assert json.loads(answer_bytes(answer))[0]["text"] == "\ufffd"
