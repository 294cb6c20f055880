"""`BGEEmbedding` of LlamaIndex and `BGEEmbeddings` of LangChain: one engine, the same vectors."""

import asyncio
import copy
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, TextNode
from sentence_transformers import SentenceTransformer

from bge_rerank_integrations import InvalidInputError, UnsupportedModel, load_scorer
from bge_rerank_integrations.base.option_group import secret_text
from bge_rerank_integrations.langchain import BGEEmbeddings
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGEEmbedding
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from bge_rerank_integrations.options import EmbedderOptions
from bge_rerank_integrations.types import FloatArray, Scale
from tests import tiny_models
from tests.fakes import WordOverlapScorer
from tests.given_options import SCORER_OPTIONS

TEXTS = [
    "Water boils at 100 degrees.",
    "",
    "A panda is a bear.",
    "大熊猫吃竹子。",
    "The capital of France is Paris. " * 200,
]
QUERY = "what is a panda?"
NO_SUCH_MODEL = "/no/such/model"
NO_MEANING = {
    *("truncation", "label", "prompt", "long_passages", "draft", "score_cache", "head_indexing"),
    *("cutoff_layers", "compress_ratio", "compress_layers"),
    *("base_url", "dialect", "deployment", "max_retries", "max_concurrency"),
    *("connect_timeout", "read_timeout", "request_timeout"),
}
"""Options of a reranker that an embedder does not have."""
FIELDS: dict[str, Any] = {k: v for k, v in SCORER_OPTIONS.items() if k not in NO_MEANING}
both = pytest.mark.parametrize("cls", [BGEEmbedding, BGEEmbeddings])
Embedder = type[BGEEmbedding] | type[BGEEmbeddings]


@pytest.mark.reference
@pytest.mark.parametrize("name", ["bge_embedder", "mean_embedder", "m3_embedder"])
@pytest.mark.parametrize("instruction", ["", "Represent this sentence: "])
def test_vectors_are_those_of_sentence_transformers(
    name: str, instruction: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(name))
    reference = SentenceTransformer(folder, device="cpu")
    options: dict[str, Any] = {"model": folder, "device": "cpu", "query_instruction": instruction}
    nodes, documents = BGEEmbedding(**options), BGEEmbeddings(**options)

    def expected(texts: list[str]) -> FloatArray:
        return reference.encode(texts, batch_size=1, normalize_embeddings=True)

    close: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
    np.testing.assert_allclose(documents.embed_documents(TEXTS), expected(TEXTS), **close)
    np.testing.assert_allclose(nodes.get_text_embedding_batch(TEXTS), expected(TEXTS), **close)
    np.testing.assert_allclose(
        [nodes.get_query_embedding(QUERY), documents.embed_query(QUERY)],
        expected([instruction + QUERY] * 2),
        **close,
    )


async def test_every_way_to_ask_gives_the_same_vectors(bge_embedder: Path) -> None:
    options: dict[str, Any] = {"model": str(bge_embedder), "device": "cpu"}
    nodes, documents = BGEEmbedding(**options, embed_batch_size=2), BGEEmbeddings(**options)
    texts, query = documents.embed_documents(TEXTS), documents.embed_query(QUERY)
    assert {type(number) for vector in [*texts, query] for number in vector} == {float}
    many = [
        nodes.get_text_embedding_batch(TEXTS),
        [nodes.get_text_embedding(text) for text in TEXTS],
        await nodes.aget_text_embedding_batch(TEXTS),
        await asyncio.gather(*map(nodes.aget_text_embedding, TEXTS)),
        await documents.aembed_documents(TEXTS),
    ]
    for vectors in many:
        np.testing.assert_allclose(vectors, texts, atol=1e-6, rtol=0)
    one = [
        nodes.get_query_embedding(QUERY),
        await nodes.aget_query_embedding(QUERY),
        await documents.aembed_query(QUERY),
    ]
    for vector in one:
        np.testing.assert_allclose(vector, query, atol=1e-6, rtol=0)
    scores = load_scorer(str(bge_embedder), device="cpu").score([(QUERY, text) for text in TEXTS])
    np.testing.assert_allclose(np.array(texts) @ np.array(query), scores, atol=1e-6, rtol=0)


def test_a_known_models_query_instruction_is_the_cards() -> None:
    plain = BGEEmbeddings(model="offline-embedder", query_instruction="")
    card = "Represent this sentence for searching relevant passages: "
    expected = plain.embed_documents([card + QUERY])[0]
    assert BGEEmbeddings(model="offline-embedder").embed_query(QUERY) == pytest.approx(expected)
    assert plain.embed_query(QUERY) != pytest.approx(expected, abs=1e-3)


def test_stores_of_both_frameworks_find_the_nearest(bge_embedder: Path) -> None:
    options: dict[str, Any] = {"model": str(bge_embedder), "device": "cpu"}
    texts = [text for text in TEXTS if text]
    cosines = load_scorer(**options).score([(QUERY, text) for text in texts])
    expected = [texts[index] for index in np.argsort(-cosines)]
    index = VectorStoreIndex(
        [TextNode(text=text) for text in texts], embed_model=BGEEmbedding(**options)
    )
    found = index.as_retriever(similarity_top_k=4).retrieve(QUERY)
    assert [node.get_content() for node in found] == expected
    assert [node.score for node in found] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    store = InMemoryVectorStore(BGEEmbeddings(**options))
    store.add_documents([Document(page_content=text) for text in texts])
    assert [d.page_content for d in store.similarity_search(QUERY, k=4)] == expected


def test_one_copy_of_the_weights_serves_both_frameworks_and_their_rerankers(
    bge_embedder: Path,
) -> None:
    options: dict[str, Any] = {"model": str(bge_embedder), "device": "cpu"}
    kinds: list[Any] = [BGEEmbedding, BGEEmbeddings, Postprocessor, Compressor]
    scorers = [kind(**options).loaded_scorer() for kind in kinds]
    assert len({id(scorer._loaded()) for scorer in scorers}) == 1


def test_close_frees_the_memory_at_once_and_the_next_use_loads_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": str(tiny_models.build_bge_embedder(tmp_path)),
        "device": "cpu",
        "keep_alive": 3600.0,
    }
    documents, nodes = BGEEmbeddings(**options), Postprocessor(**options)
    vector = documents.embed_query(QUERY)
    found = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS if text]
    nodes.postprocess_nodes(found, query_str=QUERY)
    engine = weakref.ref(documents.loaded_scorer()._loaded())
    documents.close()
    gc.collect()
    assert engine() is not None  # the other adapter's still
    nodes.close()
    deadline = time.monotonic() + 60
    while engine() is not None and time.monotonic() < deadline:
        gc.collect()
    assert engine() is None
    assert documents.embed_query(QUERY) == vector


@both
def test_the_options_are_those_of_an_embedder(cls: Embedder) -> None:
    loading = {"lazy_load", "scorer", "token"}
    assert set(cls.model_fields) - set(BaseEmbedding.model_fields) == set(FIELDS) | loading
    assert set(FIELDS) | {"token"} == {"model", *EmbedderOptions.model_fields}
    for name in ("truncation", "prompt", "label", "cutoff_layers", "base_url", "top_n"):
        with pytest.raises(ValueError, match=f"{cls.__name__} has no option '{name}'"):
            cls(**dict[str, Any]({name: "x"}))
    with pytest.raises(ValueError, match="has no option 'model_name'; did you mean model"):
        cls(**dict[str, Any](model_name="BAAI/bge-m3"))


@both
@pytest.mark.parametrize(("name", "value"), FIELDS.items())
def test_settings_survive_every_round_trip(cls: Embedder, name: str, value: Any) -> None:
    given = cls(**{name: value})
    for rebuilt in (
        cls(**given.model_dump()),
        cls.model_validate_json(given.model_dump_json()),
        pickle.loads(pickle.dumps(given)),
        copy.deepcopy(given),
    ):
        assert getattr(rebuilt, name) == value
        assert rebuilt == given != cls()
    if isinstance(given, BGEEmbedding):
        assert BGEEmbedding.from_dict(given.to_dict()) == given
        assert given.model_name == given.model


@both
def test_pickles_hold_neither_weights_nor_the_token(cls: Embedder, bge_embedder: Path) -> None:
    given = cls(model=str(bge_embedder), device="cpu", token="hf_not_to_be_seen", lazy_load=False)
    assert secret_text(given.token) == "hf_not_to_be_seen"
    written = pickle.dumps(given)
    assert len(written) < 2048
    for shown in (written.decode("latin-1"), repr(given), given.model_dump_json()):
        assert "hf_not_to_be_seen" not in shown
    read = pickle.loads(written)
    assert read.embed([QUERY]) == given.embed([QUERY])


@both
def test_nothing_is_loaded_before_there_is_a_text(cls: Embedder) -> None:
    given = cls(model=NO_SUCH_MODEL)
    assert given.embed([]) == []
    with pytest.raises(FileNotFoundError, match=NO_SUCH_MODEL):
        given.embed(["a"])
    with pytest.raises(FileNotFoundError, match=NO_SUCH_MODEL):
        cls(model=NO_SUCH_MODEL, lazy_load=False)


@both
def test_what_gives_no_vectors_is_refused(cls: Embedder, reranker_base: Path) -> None:
    with pytest.raises(UnsupportedModel, match="has no vectors; use an embedder"):
        cls(model=str(reranker_base), device="cpu").embed(["a"])
    with pytest.raises(InvalidInputError, match="address of a server"):
        cls(model="http://127.0.0.1:9").embed(["a"])
    with pytest.raises(ValueError, match="WordOverlapScorer, which gives no vectors"):
        cls(scorer=WordOverlapScorer())
    wrong: Any = "one text"
    with pytest.raises(InvalidInputError, match="texts is one str"):
        cls(model=NO_SUCH_MODEL).embed(wrong)
    missing: Any = ["a", None]
    with pytest.raises(InvalidInputError, match="text at position 1 is NoneType"):
        cls(model="offline-embedder").embed(missing)


class FakeEmbedder(WordOverlapScorer):
    """Gives a text's length as its vector, and remembers the threads that it was asked on."""

    scale: Scale = "cosine"

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def embed(self, texts: Sequence[str], *, as_queries: bool = False) -> FloatArray:
        self.threads.add(threading.get_ident())
        lengths = [[len(text), float(as_queries)] for text in texts]
        return np.array(lengths, dtype=np.float32)


async def test_a_given_scorer_is_asked_off_the_loop() -> None:
    fake = FakeEmbedder()
    documents, nodes = BGEEmbeddings(scorer=fake), BGEEmbedding(scorer=fake)
    assert await documents.aembed_documents(["a", "bcd"]) == [[1, 0], [3, 0]]
    assert await documents.aembed_query("ab") == await nodes.aget_query_embedding("ab") == [2, 1]
    assert await nodes.aget_text_embedding("ab") == [2, 0]
    assert await nodes.aget_text_embedding_batch(["ab", "b"]) == [[2, 0], [1, 0]]
    assert threading.get_ident() not in fake.threads
    with pytest.raises(ValueError, match="with scorer="):
        BGEEmbeddings(scorer=fake, max_length=20)
    with pytest.raises(ValueError, match="was given a scorer object"):
        pickle.dumps(nodes)
