"""What a served reranker reads and answers, without a server."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from bge_rerank_integrations.remote.dialects import DIALECTS, request_body
from bge_rerank_integrations.remote.messages import read_answer
from bge_rerank_integrations.serve.protocol import (
    RERANK_PATHS,
    Refusal,
    RerankCall,
    answer_bytes,
    model_list,
    read_call,
    refuse_changed_texts,
    refuse_other_model,
    tokens_read,
    write_answer,
)
from bge_rerank_integrations.types import FloatArray, PairLength, Scale

RAW = np.array([0.0, 2.0, -2.0, 2.0], dtype=np.float32)
HIGH, LOW = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(2.0))


def call(**asked: Any) -> RerankCall:
    return read_call(json.dumps(asked).encode(), max_passages=4)


def written(asked: RerankCall, raw: FloatArray = RAW, scale: Scale = "logit") -> Any:
    return write_answer(asked, raw, scale, "m", 7)


def refusal(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as refused:
        read_call(body, max_passages=4)
    return refused.value


def test_tei_gets_every_passage_best_first_and_ties_as_sent() -> None:
    answer = written(call(query="q", texts=list("abcd")))
    assert [item["index"] for item in answer] == [1, 3, 0, 2]
    assert [item["score"] for item in answer] == pytest.approx([HIGH, HIGH, 0.5, LOW])
    assert all(item.keys() == {"index", "score"} for item in answer)


def test_raw_scores_and_texts_come_only_if_asked_for() -> None:
    asked = call(query="q", texts=list("abcd"), raw_scores=True, return_text=True)
    answer = written(asked)
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
    answer = written(asked)
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
        ({"query": "q", "documents": ["a"], "top_n": True}, 422, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, 422, '"top_n" must be'),
        ({"query": "q", "documents": ["a"], "top_k": "2"}, 422, '"top_k" must be'),
        ({"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, 422, "max_tokens_per_doc"),
        ({"query": "q", "documents": ["a"], "max_chunks_per_doc": "x"}, 422, "max_chunks_per_doc"),
        ({"query": "q", "texts": ["a"], "truncate": "middle"}, 422, '"truncate"'),
        ({"query": "q", "texts": ["a"], "truncate": 0.5}, 422, '"truncate"'),
        ({"query": "q", "texts": ["a"], "truncate": []}, 422, '"truncate"'),
        ({"query": "q", "texts": ["a"], "parameters": {"truncate": "MIDDLE"}}, 422, '"truncate"'),
        ({"query": "q", "texts": ["a"], "parameters": "secret"}, 422, '"parameters" is str'),
        ({"query": "q", "documents": ["a"], "return_documents": 1}, 422, '"return_documents"'),
        ({"query": "q", "documents": ["a"], "rank_fields": ["x"]}, 422, "rank_fields"),
        ({"query": "q", "texts": ["a"], "raw_scores": "yes"}, 422, '"raw_scores" is str'),
        (
            {"query": "q", "documents": ["a"], "use_activation": "no"},
            422,
            '"use_activation" is str',
        ),
        ({"query": "q", "documents": ["a"], "activation": 0}, 422, '"activation" is int'),
        ({"query": "q", "documents": ["a"], "truncate_prompt_tokens": 9}, 422, "truncate_prompt"),
        ({"query": "q", "texts": ["a"], "instructions": "secret"}, 422, '"instructions"'),
        ({"query": "q", "texts": ["a"], "prompt": "secret"}, 422, '"prompt"'),
        ({"query": "q", "texts": ["a"], "normalize": False}, 422, '"normalize"'),
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
        {"return_documents": "true", "return_len": "true"},  # RAGFlow's client of Xinference
        {"use_activation": "true"},
        {"top_n": 0},  # vLLM's default, which means all
        {"top_n": None},
        {"top_n": None, "top_k": None},
        {"model": ""},
        {"rank_fields": ["text"]},
    ],
    ids=str,
)
def test_what_asks_for_our_own_scores_is_answered(also: dict[str, Any]) -> None:
    assert call(query="q", documents=["a"], **also) == call(query="q", documents=["a"])


@pytest.mark.parametrize("key", ["use_activation", "activation"])
def test_vllm_s_clients_get_logits_without_an_activation(key: str) -> None:
    asked = call(query="q", documents=list("abcd"), **{key: False})
    scores = [one["relevance_score"] for one in written(asked)["results"]]
    assert scores == [2.0, 2.0, 0.0, -2.0]


SHORT, LONG = PairLength(10, 256, 100, 245), PairLength(10, 256, 400, 245)


@pytest.mark.parametrize(
    ("limits", "cut", "windows"),
    [
        # which of a long passage, cut or read in windows, gets another score from the option
        ({"truncate": False}, True, False),
        ({"truncate": "false"}, True, False),
        ({"truncate": "NONE"}, True, False),
        ({"parameters": {"truncate": "START"}}, True, False),
        ({"truncation": False}, True, False),
        ({"truncation_direction": "Left"}, True, False),
        ({"max_tokens_per_doc": 4096}, False, False),
        ({"max_tokens_per_doc": 245}, False, True),
        ({"max_tokens_per_doc": 244}, True, True),
        ({"max_tokens_per_query": 10}, False, False),
        ({"max_chunks_per_doc": 1024, "overlap_tokens": 80}, False, True),  # SiliconFlow's client
    ],
    ids=str,
)
def test_an_option_is_refused_only_where_it_would_change_a_score(
    limits: dict[str, Any], *, cut: bool, windows: bool
) -> None:
    asked = call(query="q", documents=["a", "b"], **limits)
    for reads_windows, changes in ((False, cut), (True, windows)):
        refuse_changed_texts(asked, [SHORT, SHORT], windows=reads_windows)
        if changes:
            with pytest.raises(Refusal, match=r"of passage 1: .* of 400 of the passage"):
                refuse_changed_texts(asked, [SHORT, LONG], windows=reads_windows)
        else:
            refuse_changed_texts(asked, [SHORT, LONG], windows=reads_windows)
    with pytest.raises(Refusal, match="cannot tell whether this changes"):
        refuse_changed_texts(asked, None, windows=False)


def test_a_long_query_and_a_short_limit_are_refused() -> None:
    long_query = PairLength(300, 256, 10, 245)
    asked = call(query="q", texts=["a"], truncate=False)
    with pytest.raises(Refusal, match="reads 256 of 300 tokens of the query"):
        refuse_changed_texts(asked, [long_query], windows=True)
    asked = call(query="q", documents=["a"], max_tokens_per_query=9, max_tokens_per_doc=4096)
    with pytest.raises(Refusal, match='"max_tokens_per_query" would change the score'):
        refuse_changed_texts(asked, [SHORT], windows=False)


def test_the_tokens_that_the_model_reads_are_counted() -> None:
    assert tokens_read(SHORT, windows=False) == (10, 100)
    assert tokens_read(LONG, windows=False) == (10, 245)
    assert tokens_read(LONG, windows=True) == (10, 400)


def test_an_answer_has_what_typed_clients_read() -> None:
    answer = written(call(query="q", documents=list("abcd")))
    assert answer["id"] != written(call(query="q", documents=list("abcd")))["id"]
    assert answer["object"] == "rerank"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert answer["meta"]["tokens"] == {"input_tokens": 7, "output_tokens": 0}
    assert [item["document"] for item in answer["results"][:2]] == [{"text": "b"}, {"text": "d"}]
    bare = written(call(query="q", documents=list("abcd"), return_documents="False"))
    assert all(item.keys() == {"index", "relevance_score"} for item in bare["results"])
    assert [model["id"] for model in model_list(["m", "n"])["data"]] == ["m", "n"]


class VllmDocument(BaseModel):
    text: str | None


class VllmResult(BaseModel):
    index: int
    document: VllmDocument
    relevance_score: float


class VllmUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class VllmAnswer(BaseModel):
    """The fields that vLLM's own RerankResponse requires."""

    id: str
    model: str
    usage: VllmUsage
    results: list[VllmResult]


def test_an_answer_fits_vllm_s_model() -> None:
    answer = VllmAnswer.model_validate(written(call(query="q", documents=list("abcd"), top_n=0)))
    assert [result.index for result in answer.results] == [1, 3, 0, 2]


BODIES: dict[str, dict[str, Any]] = {
    "Open WebUI": {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 2},
    "RAGFlow, Xinference": {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "return_documents": "true",
        "return_len": "true",
    },
    "RAGFlow, SiliconFlow": {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "top_n": 2,
        "return_documents": False,
        "max_chunks_per_doc": 1024,
        "overlap_tokens": 80,
    },
    "Dify": {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": None},
    "Cohere 1, dictionaries": {"query": "q", "documents": [{"text": "a"}, {"text": "b"}]},
    "Jina, dictionary": {"query": {"text": "q"}, "documents": ["a", "b"]},
    "Mixedbread": {
        "model": "m",
        "query": "q",
        "input": ["a", "b"],
        "top_k": 2,
        "return_input": False,
        "rank_fields": None,
    },
    "Voyage": {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "top_k": None,
        "truncation": True,
    },
    "Contextual": {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 2},
    "NVIDIA": {
        "model": "m",
        "query": {"text": "q"},
        "passages": [{"text": "a"}, {"text": "b"}],
        "truncate": "NONE",
    },
    "TEI": {"query": "q", "texts": ["a", "b"], "truncate": True, "raw_scores": False},
    "TEI, every option": {
        "query": "q",
        "texts": ["a", "b"],
        "truncate": False,
        "raw_scores": False,
        "truncation_direction": "Right",
        "return_text": False,
    },
}
"""The bodies that other clients send, as recorded."""


@pytest.mark.parametrize("client", BODIES)
def test_recorded_requests_are_answered(client: str) -> None:
    asked = call(**BODIES[client])
    refuse_changed_texts(asked, [SHORT, SHORT], windows=False)
    assert asked.pairs == [("q", "a"), ("q", "b")]
    answer = written(asked, RAW[:2])
    results = answer[asked.form.results] if asked.form.results else answer
    scores = {item["index"]: item[asked.form.score] for item in results}
    assert scores == pytest.approx({0: 0.0, 1: 2.0} if asked.raw else {0: 0.5, 1: HIGH})


def test_top_n_beside_texts_is_honoured() -> None:
    asked = call(query="q", texts=list("abcd"), top_n=2)  # as rerankers and LiteLLM send it
    assert [item["index"] for item in written(asked)] == [1, 3]


def test_voyage_s_top_k_is_a_count_too() -> None:
    asked = call(query="q", documents=list("abcd"), top_k=2, return_documents=True)
    best, second = written(asked)["data"]
    assert best == {"index": 1, "relevance_score": pytest.approx(HIGH), "document": "b"}
    assert second["index"] == 3
    assert call(query="q", documents=["a"], top_k=3, top_n=2).top_n == 2


def test_nvidia_gets_logits_and_mixedbread_its_input() -> None:
    asked = call(query={"text": "q"}, passages=[{"text": t} for t in "abcd"], truncate="END")
    answer = written(asked)
    assert answer["rankings"] == [
        {"index": 1, "logit": 2.0}, {"index": 3, "logit": 2.0},
        {"index": 0, "logit": 0.0}, {"index": 2, "logit": -2.0},
    ]  # fmt: skip
    with pytest.raises(Refusal, match="no raw scores"):
        written(asked, RAW[:0] + 0.5, "probability")
    answer = written(call(query="q", input=list("abcd"), top_k=1, return_input=True))
    assert answer["data"] == [{"index": 1, "score": pytest.approx(HIGH), "input": "b"}]
    with pytest.raises(Refusal, match="rewrite_query"):
        call(query="q", input=["a"], rewrite_query=True)


SPOKEN = ("tei", "infinity", "vllm", "xinference", "nim", "cohere", "jina", "voyage", "siliconflow")


@pytest.mark.parametrize("dialect", SPOKEN)
@pytest.mark.parametrize("logits", [True, False])
def test_our_own_clients_requests_are_answered(dialect: str, *, logits: bool) -> None:
    spoken = DIALECTS[dialect]
    assert spoken.path in RERANK_PATHS
    asked = call(**request_body(spoken, "q", list("abcd"), model="m", logits=logits))
    assert asked.passages == list("abcd")
    assert asked.raw == (spoken.scale == "logit" and (logits or not spoken.logits))
    found = read_answer(spoken, written(asked), 4)
    assert found.tolist() == pytest.approx(RAW if asked.raw else [0.5, HIGH, LOW, HIGH])


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    assert refusal(body).status == 400


def test_a_probability_is_not_shown_as_a_logit() -> None:
    raw = np.array([0.25, 0.5], dtype=np.float32)
    answer = written(call(query="q", texts=["a", "b"]), raw, "probability")
    assert [item["score"] for item in answer] == [0.5, 0.25]
    with pytest.raises(Refusal, match="no raw scores"):
        written(call(query="q", texts=["a", "b"], raw_scores=True), raw, "probability")


def test_another_model_is_refused() -> None:
    refuse_other_model(None, ("m", "alias"))
    refuse_other_model("alias", ("m", "alias"))
    with pytest.raises(Refusal, match="'m', 'alias' is") as refused:
        refuse_other_model("rerank-v3.5", ("m", "alias"))
    assert refused.value.status == 404


def test_half_a_surrogate_pair_is_a_replacement_character_there_and_back() -> None:
    asked = call(query="q", texts=["\ud800"], return_text=True)
    answer = written(asked, RAW[:1])
    assert json.loads(answer_bytes(answer))[0]["text"] == "\ufffd"
