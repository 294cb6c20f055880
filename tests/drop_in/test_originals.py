"""The drop-in classes against the originals, on the same model folders: scores, order, arguments.

The texts are those on which the originals keep their own rules under the transformers that is
installed (see `tests/reference`).
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker as OriginalCrossEncoderReranker,
)
from langchain_core.documents import Document
from llama_index.core.postprocessor import SentenceTransformerRerank as OriginalCoreRerank
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.flag_embedding_reranker import (
    FlagEmbeddingReranker as OriginalFlagReranker,
)
from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank as OriginalSbertRerank
from sentence_transformers import CrossEncoder

from bge_rerank_integrations.drop_in.langchain import CrossEncoderReranker, HuggingFaceCrossEncoder
from bge_rerank_integrations.drop_in.llama_index import (
    FlagEmbeddingReranker,
    SentenceTransformerRerank,
)
from bge_rerank_integrations.langchain import BGECrossEncoder
from tests.tiny_models import TEXT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the package says that it is being sunset
    from langchain_community.cross_encoders.huggingface import (
        HuggingFaceCrossEncoder as OriginalCrossEncoder,
    )

pytestmark = pytest.mark.reference

CLOSE = 1e-4
MODELS = ["reranker_base", "reranker_m3", "bert_reranker"]
QUERY = "what is a panda?"
LINES = TEXT.splitlines()


def nodes(texts: list[str]) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=str(number), text=text, metadata={"file": f"{number}.txt"}),
            score=1 / (number + 1),
        )
        for number, text in enumerate(texts)
    ]


def found(reranker: BaseNodePostprocessor, texts: list[str], query: str) -> list[tuple[str, float]]:
    """Ids and scores in the order that came back; the originals write into what they are given."""
    ranked = reranker.postprocess_nodes(nodes(texts), query_str=query)
    return [(node.node_id, float(node.score or 0)) for node in ranked]


def same(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> None:
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert [score for _, score in ours] == pytest.approx([s for _, s in theirs], abs=CLOSE)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    folder: Path = request.getfixturevalue(request.param)
    return str(folder)


@pytest.mark.parametrize("top_n", [1, 5, 100])
def test_flag_embedding_reranker(model: str, top_n: int) -> None:
    theirs = OriginalFlagReranker(top_n, model)
    ours = FlagEmbeddingReranker(top_n, model)
    expected = found(theirs, LINES, QUERY)
    assert len(expected) == min(top_n, len(LINES))
    assert all(not 0 <= score <= 1 for _, score in expected[:1])  # logits
    same(found(ours, LINES, QUERY), expected)


@pytest.mark.parametrize("original", [OriginalCoreRerank, OriginalSbertRerank])
@pytest.mark.parametrize("top_n", [1, 5, 100])
def test_sentence_transformer_rerank(
    model: str, top_n: int, original: Callable[..., BaseNodePostprocessor]
) -> None:
    theirs = original(model=model, top_n=top_n, device="cpu")
    ours = SentenceTransformerRerank(model=model, top_n=top_n, device="cpu")
    # passages beyond 512 tokens are cut by both
    texts = [*LINES, "\n".join(LINES * 2), "\n".join(LINES[::-1] * 2)]
    expected = found(theirs, texts, QUERY)
    assert all(0 < score < 1 for _, score in expected)
    same(found(ours, texts, QUERY), expected)


def test_hugging_face_cross_encoder(model: str) -> None:
    theirs = OriginalCrossEncoder(model_name=model, model_kwargs={"device": "cpu"})
    ours = HuggingFaceCrossEncoder(model_name=model, model_kwargs={"device": "cpu"})
    pairs = [(query, passage) for query in LINES[:3] for passage in LINES]
    scores = ours.score(pairs)
    assert {type(score) for score in scores} == {float}
    assert scores == pytest.approx(list(theirs.score(pairs)), abs=CLOSE)


@pytest.mark.parametrize("name", ["reranker_base", "reranker_m3"])
def test_its_default_length_is_the_models_own(name: str, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(name))
    theirs = OriginalCrossEncoder(model_name=model, model_kwargs={"device": "cpu"})
    ours = HuggingFaceCrossEncoder(model_name=model, model_kwargs={"device": "cpu"})
    assert ours.max_length == theirs.client.max_seq_length
    pairs = [(QUERY, "\n".join(LINES * times)) for times in (1, 2, 3)]  # up to 1500 tokens
    assert ours.score(pairs) == pytest.approx(list(theirs.score(pairs)), abs=CLOSE)


@pytest.mark.parametrize("length", [40, 41])
def test_long_queries_are_cut_where_the_original_cuts(model: str, length: int) -> None:
    arguments: dict[str, Any] = {
        "model_name": model,
        "model_kwargs": {"device": "cpu", "max_length": length},
    }
    texts = [" ".join(LINES[0].split()[:words]) for words in (1, 6, 12)] + ["\n".join(LINES[:3])]
    pairs = [(query, passage) for query in texts for passage in texts]
    expected = list(OriginalCrossEncoder(**arguments).score(pairs))
    ours = HuggingFaceCrossEncoder(**arguments)
    assert ours.score(pairs) == pytest.approx(expected, abs=CLOSE)
    other_rule = BGECrossEncoder(model=model, max_length=length).score(pairs)
    assert other_rule != pytest.approx(expected, abs=CLOSE)


def test_langchains_own_reranker_takes_it(reranker_base: Path) -> None:
    arguments: dict[str, Any] = {
        "model_name": str(reranker_base),
        "model_kwargs": {"device": "cpu"},
    }
    theirs = OriginalCrossEncoderReranker(model=OriginalCrossEncoder(**arguments), top_n=4)
    ours = HuggingFaceCrossEncoder(**arguments)
    documents = [Document(page_content=line, id=str(n)) for n, line in enumerate(LINES)]
    expected = [document.id for document in theirs.compress_documents(documents, QUERY)]
    inside = OriginalCrossEncoderReranker(model=ours, top_n=4)
    assert [d.id for d in inside.compress_documents(documents, QUERY)] == expected
    kept = CrossEncoderReranker(model=ours, top_n=4).compress_documents(documents, QUERY)
    assert [document.id for document in kept] == expected
    scores = dict(
        zip(range(len(LINES)), ours.score([(QUERY, line) for line in LINES]), strict=True)
    )
    assert [d.metadata["relevance_score"] for d in kept] == [scores[int(str(d.id))] for d in kept]
    assert all(document.metadata == {} for document in documents)


def edited(folder: Path, target: Path, file: str, **values: Any) -> str:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    path = target / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")
    return str(target)


IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1"}}),
        ("config.json", {"sbert_ce_default_activation_function": IDENTITY}),
        ("tokenizer_config.json", {"model_max_length": 48}),
    ],
    ids=str,
)
def test_what_was_saved_with_the_model_counts(
    reranker_base: Path, tmp_path: Path, file: str, values: dict[str, Any]
) -> None:
    model = edited(reranker_base, tmp_path / "model", file, **values)
    arguments: dict[str, Any] = {"model_name": model, "model_kwargs": {"device": "cpu"}}
    counts(arguments, reranker_base)


def counts(arguments: dict[str, Any], unchanged: Path) -> None:
    """Assert that a changed model is scored as the original does, and not as the unchanged one."""
    pairs = [(QUERY, line) for line in [*LINES, "\n".join(LINES)]]
    expected = list(OriginalCrossEncoder(**arguments).score(pairs))
    assert HuggingFaceCrossEncoder(**arguments).score(pairs) == pytest.approx(expected, abs=CLOSE)
    plain = HuggingFaceCrossEncoder(model_name=str(unchanged)).score(pairs)
    assert plain != pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("changed", [{"activation_fn": torch.nn.Identity()}, {"max_length": 40}])
def test_a_model_saved_by_sentence_transformers(
    reranker_base: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    CrossEncoder(str(reranker_base), device="cpu", **changed).save_pretrained(str(tmp_path))
    counts({"model_name": str(tmp_path), "model_kwargs": {"device": "cpu"}}, reranker_base)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_length": 40},
        {"activation_fn": torch.nn.Identity()},
        {"activation_fn": torch.nn.Sigmoid()},
        {"model_kwargs": {"torch_dtype": torch.float32}},
        {"model_kwargs": {"dtype": "float32"}, "trust_remote_code": True},
        {"processor_kwargs": {"model_max_length": 40}},
        {"num_labels": 1, "local_files_only": True, "revision": None, "token": None},
        {"cache_folder": "/models", "backend": "torch"},
    ],
    ids=str,
)
def test_arguments_of_cross_encoder(reranker_base: Path, arguments: dict[str, Any]) -> None:
    model = str(reranker_base)
    texts = [*LINES, "\n".join(LINES)]
    theirs = CrossEncoder(model, device="cpu", **arguments)
    expected = theirs.predict([(QUERY, text) for text in texts]).tolist()
    ours = SentenceTransformerRerank(
        model=model, top_n=100, device="cpu", cross_encoder_kwargs=arguments
    )
    scores = dict(found(ours, texts, QUERY))
    assert [scores[str(n)] for n in range(len(texts))] != expected  # the file names are read too
    bare = [NodeWithScore(node=TextNode(id_=str(n), text=t)) for n, t in enumerate(texts)]
    ranked = {n.node_id: n.score for n in ours.postprocess_nodes(bare, query_str=QUERY)}
    assert [ranked[str(n)] for n in range(len(texts))] == pytest.approx(expected, abs=CLOSE)
