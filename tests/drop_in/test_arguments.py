"""What the originals lose is kept; what cannot be honoured is refused with what to do."""

import copy
import inspect
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import ValidationError
from sentence_transformers import CrossEncoder

from bge_rerank_integrations import (
    InvalidInputError,
    ModelNotFound,
    NonFiniteScoreError,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.base.option_group import secret_text
from bge_rerank_integrations.drop_in.cross_encoder import ARGUMENTS
from bge_rerank_integrations.drop_in.langchain import CrossEncoderReranker, HuggingFaceCrossEncoder
from bge_rerank_integrations.drop_in.llama_index import (
    FlagEmbeddingReranker,
    SentenceTransformerRerank,
)
from bge_rerank_integrations.tools.export import export_onnx

QUERY = "what is a panda?"
TEXTS = ["Water boils at 100 degrees.", "A panda is a bear.", "The capital of France is Paris."]
TOKEN = "hf_not_to_be_seen"
BOTH = pytest.mark.parametrize("kind", [FlagEmbeddingReranker, SentenceTransformerRerank])
Kind = Callable[..., FlagEmbeddingReranker | SentenceTransformerRerank]


def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=t, id_=t[:5]), score=0.5) for t in TEXTS]


@BOTH
async def test_nodes_are_left_as_they_are(kind: Kind, reranker_base: Path) -> None:
    reranker, given, second = kind(model=str(reranker_base), top_n=3), nodes(), nodes()
    first = reranker.postprocess_nodes(given, query_str=QUERY)
    assert given == second
    assert {type(node.score) for node in first} == {float}
    json.dumps([node.to_dict() for node in first])
    again = await reranker.apostprocess_nodes(given, query_str=QUERY)
    assert [(n.node_id, n.score) for n in again] == [(n.node_id, n.score) for n in first]
    twice = reranker.postprocess_nodes(first, query_str=QUERY)
    assert [(n.node_id, n.score) for n in twice] == [(n.node_id, n.score) for n in first]


def test_the_retrieval_score_is_kept_out_of_sight(reranker_base: Path) -> None:
    model = str(reranker_base)
    always = FlagEmbeddingReranker(model=model).postprocess_nodes(nodes(), query_str=QUERY)
    asked = SentenceTransformerRerank(model=model, keep_retrieval_score=True)
    for node in [*always, *asked.postprocess_nodes(nodes(), query_str=QUERY)]:
        assert node.metadata == {"retrieval_score": 0.5}
        assert "0.5" not in node.node.get_content(MetadataMode.LLM)
        assert "0.5" not in node.node.get_content(MetadataMode.EMBED)
    plain = SentenceTransformerRerank(model=model).postprocess_nodes(nodes(), query_str=QUERY)
    assert [node.metadata for node in plain] == [{}, {}]


@BOTH
def test_nodes_without_a_query_are_refused(kind: Kind, reranker_base: Path) -> None:
    reranker = kind(model=str(reranker_base))
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ValueError, match="query"):
        reranker.postprocess_nodes(nodes())


@BOTH
def test_settings_can_change_where_no_score_hangs_on_them(kind: Kind, reranker_base: Path) -> None:
    reranker = kind(model=str(reranker_base))
    assert len(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == 2
    reranker.top_n = 1
    reranker.callback_manager = CallbackManager()
    assert len(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == 1
    with pytest.raises(ValidationError, match="frozen"):
        reranker.model = "another"
    for wrong in (0, -1):
        with pytest.raises(ValidationError, match="top_n"):
            kind(model=str(reranker_base), top_n=wrong)


@BOTH
def test_copies_of_every_kind_score_alike(kind: Kind, reranker_base: Path) -> None:
    reranker = kind(model=str(reranker_base), top_n=3)
    expected = reranker.postprocess_nodes(nodes(), query_str=QUERY)
    written = pickle.dumps(reranker)
    assert len(written) < 2000  # no weights
    classes = type(reranker)
    for other in (
        classes.from_dict(reranker.to_dict()),
        classes.from_json(reranker.to_json()),
        pickle.loads(written),
        copy.deepcopy(reranker),
    ):
        assert other.to_dict() == reranker.to_dict()
        assert other.postprocess_nodes(nodes(), query_str=QUERY) == expected


def test_a_cross_encoder_survives_pickle_and_copies(reranker_base: Path) -> None:
    encoder = HuggingFaceCrossEncoder(
        model_name=str(reranker_base),
        model_kwargs={"device": "cpu", "activation_fn": torch.nn.Identity(), "max_length": 40},
    )
    pairs = [(QUERY, text * 20) for text in TEXTS]
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert other == encoder
        assert other.score(pairs) == encoder.score(pairs)
    assert encoder.model_name == str(reranker_base)
    dumped = encoder.model_dump()
    assert (dumped["device"], dumped["normalize"], dumped["max_length"]) == ("cpu", False, 40)


def test_a_token_is_told_nowhere(reranker_base: Path) -> None:
    given = {"token": TOKEN, "device": "cpu"}
    encoder = HuggingFaceCrossEncoder(model_name=str(reranker_base), model_kwargs=given)
    assert given["token"] == TOKEN  # the caller's own
    held = encoder.token
    assert held is not None
    assert secret_text(held) == TOKEN
    reranker = SentenceTransformerRerank(
        model=str(reranker_base), cross_encoder_kwargs={"token": TOKEN}
    )
    shown = [repr(encoder), encoder.model_dump_json(), repr(reranker), reranker.to_json()]
    assert not any(TOKEN in text for text in shown)
    assert TOKEN.encode() not in pickle.dumps(encoder) + pickle.dumps(reranker)
    with pytest.raises(InvalidInputError) as caught:
        HuggingFaceCrossEncoder(model_kwargs={"token": TOKEN, "prompts": {}})
    assert TOKEN not in str(caught.value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": {"query": "q: "}}, "model_kwargs: prompts has no counterpart here: leave it out"),
    ({"num_labels": 2}, "a reranker has one label"),
    ({"activation_fn": torch.nn.Tanh()}, r"torch\.nn\.modules\.activation\.Tanh'; use torch\.nn"),
    ({"activation_fn": torch.sigmoid}, r"use torch\.nn"),
    (
        {"model_kwargs": {"attn_implementation": "eager"}},
        r"attn_implementation has no",
    ),
    (
        {"model_kwargs": {"torch_dtype": "float64"}},
        "torch_dtype is 'float64'; it must be float32",
    ),
    ({"processor_kwargs": {"use_fast": False}}, r"processor_kwargs\.use_fast has no counterpart"),
    ({"max_length": 0}, "number of tokens"),
    (
        {"max_length": 40, "processor_kwargs": {"model_max_length": 41}},
        r"processor_kwargs\.model_max_length is given under another name too",
    ),
    ({"backend": "tensorflow"}, "'torch', 'onnx' or 'openvino'"),
    ({"local_files_only": "yes"}, "must be True or False"),
    ({"token": False}, "give a string"),
    ({"device": 0}, "device is 0; it must be a string"),
    ({"device": "npu"}, "available: cpu"),
    ({"max_length": 100_000}, "this model takes"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_cannot_be_honoured_is_refused(
    reranker_base: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        HuggingFaceCrossEncoder(model_name=str(reranker_base), model_kwargs=arguments)


def test_the_cache_is_the_one_that_cross_encoder_reads(
    reranker_base: Path, bert_reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    for home, source in ((tmp_path / "set", reranker_base), (tmp_path / "given", bert_reranker)):
        repository = home / "models--some--model"
        shutil.copytree(source, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "set"))
    pairs = [(QUERY, text) for text in TEXTS]
    found = []
    local: dict[str, Any] = {"local_files_only": True}
    for cache in (None, str(tmp_path / "given")):
        arguments = {**local, "device": "cpu", "cache_folder": cache}
        ours = HuggingFaceCrossEncoder(model_name="some/model", model_kwargs=arguments)
        theirs = CrossEncoder("some/model", **arguments).predict(pairs)
        assert ours.score(pairs) == pytest.approx(theirs.tolist(), abs=1e-4)
        reranker = SentenceTransformerRerank(
            model="some/model", cache_folder=cache, cross_encoder_kwargs=local
        )
        best = reranker.postprocess_nodes(nodes(), query_str=QUERY)[0]
        assert best.score == pytest.approx(max(ours.score(pairs)), abs=1e-6)
        found.append(ours.score(pairs))
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_backend_and_file_name_choose_a_graph(reranker_base: Path, tmp_path: Path) -> None:
    folder, pairs = tmp_path / "exported", [(QUERY, text) for text in TEXTS]
    export_onnx(str(reranker_base), folder, dtype="int8")
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_int8.onnx")
    arguments = {"backend": "onnx", "model_kwargs": {"file_name": "model_int8.onnx"}}
    encoder = HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs=arguments)
    reranker = SentenceTransformerRerank(model=str(folder), cross_encoder_kwargs=arguments)
    logits = load_scorer(
        str(folder), backend="onnx", file_name="model_int8.onnx", truncation="longest_first"
    ).score(pairs)
    assert encoder.score(pairs) == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), abs=1e-6)
    best = reranker.postprocess_nodes(nodes(), query_str=QUERY)[0]
    assert best.score == pytest.approx(max(encoder.score(pairs)), abs=1e-6)
    assert pickle.loads(pickle.dumps(encoder)).score(pairs) == encoder.score(pairs)
    with pytest.raises(InvalidInputError, match=r"file_name is 'other\.onnx'"):
        HuggingFaceCrossEncoder(
            model_name=str(folder), model_kwargs={"model_kwargs": {"file_name": "other.onnx"}}
        )


@BOTH
def test_options_of_this_package_are_taken_too(kind: Kind, reranker_base: Path) -> None:
    reranker = kind(model=str(reranker_base), score_threshold=0.0, include_logit=True)
    ranked = reranker.postprocess_nodes(nodes(), query_str=QUERY)
    assert all(node.score is not None and node.score >= 0 for node in ranked)
    assert all("rerank_raw_score" in node.metadata for node in ranked)
    with pytest.raises(ValueError, match=r"has no option 'topn'; did you mean top_n\?"):
        kind(model=str(reranker_base), topn=1)
    encoder = HuggingFaceCrossEncoder(model_name=str(reranker_base), batch_size=1)
    assert (encoder.batch_size, encoder.precision) == (1, "fp32")


def test_every_argument_of_cross_encoder_is_known_or_refused_on_purpose() -> None:
    there = set(inspect.signature(CrossEncoder.__init__).parameters) - {"self"}
    refused = {
        "model_name_or_path", "modules", "prompts", "default_prompt_name", "config_kwargs",
        "model_card_data", "keep_in_fp32_modules",
    }  # fmt: skip
    known = {alias.partition(".")[0] for alias in ARGUMENTS}
    assert there - known <= refused


def test_the_places_of_arguments_that_two_originals_order_differently() -> None:
    with pytest.raises(InvalidInputError, match="by name"):
        SentenceTransformerRerank(3, "some/model")
    with pytest.raises(InvalidInputError, match="give device="):
        SentenceTransformerRerank(model="some/model", cross_encoder_kwargs={"device": "cpu"})
    with pytest.raises(InvalidInputError, match="client is a object"):
        HuggingFaceCrossEncoder(client=object())  # type: ignore[arg-type]


def test_models_that_would_be_scored_wrong(
    damaged: Callable[[str], Path], bge_embedder: Path, reranker_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match="2 labels"):
        HuggingFaceCrossEncoder(model_name=str(damaged("two_labels")))
    with pytest.raises(UnsupportedModel, match="with a relevance head"):
        SentenceTransformerRerank(model=str(bge_embedder))
    with pytest.raises(ModelNotFound):
        FlagEmbeddingReranker(model=str(tmp_path / "nowhere"))
    config = json.loads((reranker_base / "config.json").read_text(encoding="utf-8"))
    config["sentence_transformers"] = {"activation_fn": "some.package.Activation"}
    for file in reranker_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=r"some\.package\.Activation; supported: Sigmoid"):
        HuggingFaceCrossEncoder(model_name=str(tmp_path))


class WordCount:
    """Scores a pair by the words of the query that its passage has; NaN for an empty passage."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return [
            float(len(set(query.split()) & set(passage.split())))
            if passage != "?"
            else float("nan")
            for query, passage in text_pairs
        ]


async def test_any_cross_encoder_keeps_its_scores() -> None:
    documents = [Document(page_content=text, id=text) for text in ("a dog", "red fox", "red hat")]
    before = copy.deepcopy(documents)
    reranker = CrossEncoderReranker(model=WordCount(), top_n=2)
    found = reranker.compress_documents(documents, "red fox")
    assert [(d.id, d.metadata) for d in found] == [
        ("red fox", {"relevance_score": 2.0}),
        ("red hat", {"relevance_score": 1.0}),
    ]
    assert await reranker.acompress_documents(documents, "red fox") == found
    assert documents == before
    assert reranker.compress_documents([], "red fox") == []
    with pytest.raises(NonFiniteScoreError):
        reranker.compress_documents([Document(page_content="?")], "red fox")
    with pytest.raises(ValidationError, match="top_n"):
        CrossEncoderReranker(model=WordCount(), top_n=0)
    with pytest.raises(ValidationError, match="give a cross-encoder"):
        CrossEncoderReranker(model="BAAI/bge-reranker-base")


def test_flag_embedding_reranker_takes_a_precision_besides_use_fp16(reranker_base: Path) -> None:
    model = str(reranker_base)
    for options, precision in (
        ({}, "fp32"),
        ({"use_fp16": True}, "fp16"),
        ({"precision": "bf16"}, "bf16"),
        ({"use_fp16": True, "precision": "fp16"}, "fp16"),
    ):
        reranker = FlagEmbeddingReranker(2, model, **options)
        assert reranker.precision == precision
        assert FlagEmbeddingReranker.from_dict(reranker.to_dict()).precision == precision
    with pytest.raises(InvalidInputError, match="use_fp16=True contradicts precision='bf16'"):
        FlagEmbeddingReranker(2, model, use_fp16=True, precision="bf16")
    with pytest.raises(InvalidInputError, match="did you mean precision"):
        load_scorer(model, use_fp16=True)  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [FlagEmbeddingReranker, SentenceTransformerRerank, "LangChain"])
def test_texts_that_are_missing_are_said_once(
    kind: Any, reranker_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after a copy was made, and where `top_n` changes."""
    if kind == "LangChain":
        encoder = HuggingFaceCrossEncoder(model_name=str(reranker_base))
        reranker: Any = CrossEncoderReranker(model=encoder)
        given = [Document(page_content=text) for text in ("", TEXTS[0])]
        calls: Any = [reranker.compress_documents] * 3
        arguments: Any = (given, QUERY)
    else:
        reranker = kind(model=str(reranker_base), top_n=3)
        calls = [reranker.postprocess_nodes] * 3
        arguments = ([*nodes(), NodeWithScore(node=TextNode(text=""))], None, QUERY)
    for top_n, call in zip((3, 3, 1), calls, strict=True):
        reranker.top_n = top_n
        assert len(call(*arguments)) == min(top_n, len(arguments[0]))
    said = [r.message for r in caplog.records if "have no text" in r.message]
    assert len(said) == 1
    assert "no_text='drop' of BGERerank" in said[0]
    if kind == "LangChain":
        for copied in (copy.deepcopy(reranker), pickle.loads(pickle.dumps(reranker))):
            assert copied == reranker
            assert [d.page_content for d in copied.compress_documents(*arguments)] == [TEXTS[0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlagEmbeddingReranker(model="htps://u:canary@host"),
        lambda: SentenceTransformerRerank(model="htps://u:canary@host"),
        lambda: HuggingFaceCrossEncoder(model_name="htps://u:canary@host"),
    ],
)
def test_an_address_is_refused_without_its_password(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="address") as refused:
        make()
    assert "canary" not in str(refused.value)
