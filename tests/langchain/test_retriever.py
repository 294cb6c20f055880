"""The retriever on langchain-core alone, beside the one of langchain-classic."""

import asyncio
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.langchain import BGERerank, BGERerankRetriever
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import (
    NO_SUCH_MODEL,
    QUERY,
    TEXTS,
    documents,
    positions,
    scores,
    sigmoid,
    word_overlap_rerank,
)
from tests.langchain.test_inside_langchain import Foxes, as_context, invoke, sync_and_async


def over(found: list[Document], **fields: Any) -> BGERerankRetriever:
    return BGERerankRetriever(
        base_retriever=Foxes(found=found), **{"scorer": WordOverlapScorer(), **fields}
    )


WORDS = st.lists(st.sampled_from(["red", "fox", "jumps", "a", "lazy"]), max_size=6)
TEXT = WORDS.map(" ".join)
OPTIONS = st.fixed_dictionaries(
    {"top_n": st.none() | st.integers(1, 8)},
    optional={
        "normalize": st.booleans(),
        "score_threshold": st.sampled_from([0.5, 0.8]),
        "no_text": st.sampled_from(["last", "drop"]),
        "include_logit": st.booleans(),
        "metadata_keys": st.just(["title"]),
        "score_key": st.just("score"),
    },
)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(query=TEXT, texts=st.lists(st.tuples(TEXT, TEXT), max_size=9), options=OPTIONS)
def test_gives_what_langchain_classics_retriever_gives(
    query: str, texts: list[tuple[str, str]], options: dict[str, Any]
) -> None:
    found = [
        Document(id=str(index), page_content=text, metadata={"title": title})
        for index, (text, title) in enumerate(texts)
    ]
    reranker, base = BGERerank(scorer=WordOverlapScorer(), **options), Foxes(found=found)
    classic = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=base)
    expected = classic.invoke(query)
    ours = BGERerankRetriever(base_retriever=base, scorer=WordOverlapScorer(), **options)
    assert ours.invoke(query) == expected
    assert asyncio.run(ours.ainvoke(query)) == expected
    assert BGERerankRetriever(base_retriever=base, reranker=reranker).batch([query]) == [expected]


@sync_and_async
async def test_the_run_is_a_retrievers_with_the_search_and_the_rerank_below(how: str) -> None:
    runs, retriever = (
        RunCollectorCallbackHandler(),
        over(documents(), tags=["t"], metadata={"m": 1}),
    )
    config = {"callbacks": [runs], "tags": ["call"], "run_name": "search"}
    ranked = await invoke(retriever, how, QUERY, config)
    (root,) = runs.traced_runs
    assert (root.name, root.run_type, root.inputs) == ("search", "retriever", {"query": QUERY})
    assert root.outputs == {"documents": ranked}
    assert set(root.tags or []) == {"t", "call"}
    assert root.metadata["m"] == 1
    assert root.metadata["ls_retriever_name"] == "bgererank"
    assert [run.name for run in root.child_runs] == ["Foxes", "BGERerank"]
    assert root.child_runs[1].inputs == {"documents": documents(), "query": QUERY}


@sync_and_async
async def test_nothing_is_loaded_where_nothing_is_found(how: str) -> None:
    retriever = BGERerankRetriever(base_retriever=Foxes(found=[]), model=NO_SUCH_MODEL)
    assert await invoke(retriever, how, QUERY) == []


@sync_and_async
async def test_a_call_may_keep_another_number(how: str) -> None:
    retriever = over(documents(), top_n=2)
    for top_n, kept in ((1, [1]), (None, [1, 3, 2, 4, 0]), (-1, [1, 3])):
        if how == "sync":
            ranked = retriever.invoke(QUERY, top_n=top_n)
        else:
            ranked = await retriever.ainvoke(QUERY, top_n=top_n)
        assert positions(ranked) == kept
    with pytest.raises(InvalidInputError, match="top_n is 0"):
        retriever.invoke(QUERY, top_n=0)
    assert retriever.reranker.top_n == 2


async def test_composes_as_every_retriever_does() -> None:
    retriever = over(documents())
    expected, wanted = retriever.invoke(QUERY), [1, 3, 2]
    assert positions(expected) == wanted
    assert (
        retriever.batch([QUERY, QUERY]) == await retriever.abatch([QUERY, QUERY]) == [expected] * 2
    )
    assert (
        [*retriever.stream(QUERY)]
        == [part async for part in retriever.astream(QUERY)]
        == [expected]
    )
    assert retriever.with_config(tags=["a"]).invoke(QUERY) == expected
    choice = retriever.configurable_fields(candidates=ConfigurableField("candidates"))
    assert positions(choice.with_config(configurable={"candidates": 2}).invoke(QUERY)) == [1, 0]

    def gone(_: str) -> list[Document]:
        raise ConnectionError("the index is gone")

    broken = BGERerankRetriever(base_retriever=RunnableLambda(gone), model=NO_SUCH_MODEL)
    assert broken.with_fallbacks([retriever]).invoke(QUERY) == expected
    calls: list[str] = []

    def gone_once(query: str) -> list[Document]:
        calls.append(query)
        return documents() if len(calls) == 2 else gone(query)

    flaky = RunnableLambda(gone_once)
    retried = BGERerankRetriever(base_retriever=flaky, scorer=WordOverlapScorer()).with_retry(
        wait_exponential_jitter=False, stop_after_attempt=2
    )
    assert retried.invoke(QUERY) == expected
    prompt = ChatPromptTemplate.from_template("{context}|{question}")
    inputs = {"context": retriever | as_context, "question": RunnablePassthrough()}
    answer = (inputs | prompt | ParrotFakeChatModel()).invoke(QUERY)
    assert answer.content == "the red fox jumps\na fox jumps high\na red car|red fox jumps"


def vector_search(**search: Any) -> VectorStoreRetriever:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(documents())
    return store.as_retriever(search_kwargs=search)


@sync_and_async
async def test_candidates_asks_a_copy_of_the_search(how: str) -> None:
    search = vector_search(k=1, filter=lambda document: "lazy" not in document.page_content)
    before = dict(search.search_kwargs)
    retriever = BGERerankRetriever(
        base_retriever=search, candidates=4, top_n=None, scorer=WordOverlapScorer()
    )
    assert positions(await invoke(retriever, how, QUERY)) == [1, 3, 2, 4]
    assert search.search_kwargs == before
    assert retriever.base_retriever is search
    search.search_kwargs["filter"] = lambda document: "fox" in document.page_content
    assert positions(await invoke(retriever, how, QUERY)) == [1, 3]  # follows the caller's object


class Ranked(BaseRetriever):
    """Finds the first `k` of its documents."""

    k: int = 2

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return documents()[: self.k]


@pytest.mark.parametrize(
    ("base", "kept"),
    [
        (vector_search(k=1).with_config(tags=["a"]), [1, 3, 2, 4, 0]),
        (vector_search(k=1).with_retry(), [1, 3, 2, 4, 0]),
        (Ranked(), [1, 3, 2, 4, 0]),
        (RunnableLambda(lambda query: documents() * 2), [1, 3, 2, 4, 0]),  # brings what it brings
    ],
)
def test_candidates_of_other_searches(base: Any, kept: list[int]) -> None:
    retriever = BGERerankRetriever(
        base_retriever=base, candidates=5, top_n=None, scorer=WordOverlapScorer()
    )
    assert positions(retriever.invoke(QUERY)) == kept


def test_further_keywords_of_a_call_are_the_searchs() -> None:
    retriever = BGERerankRetriever(
        base_retriever=vector_search(k=5), scorer=WordOverlapScorer(), top_n=None
    )
    assert len(retriever.invoke(QUERY, k=2)) == 2
    assert len(retriever.invoke(QUERY, k=2, top_n=1)) == 1


def test_pickled_by_its_settings_without_weights_or_secrets() -> None:
    retriever = BGERerankRetriever(
        base_retriever=Foxes(found=documents()), model="offline", top_n=2, candidates=4, tags=["a"]
    )
    expected = retriever.invoke(QUERY)
    written = pickle.dumps(retriever)
    assert len(written) < 10_000
    read = pickle.loads(written)
    assert read == retriever
    assert (read.tags, read.candidates, read.reranker.top_n) == (["a"], 4, 2)
    assert read.invoke(QUERY) == expected
    served = BGERerankRetriever(
        base_retriever=Foxes(found=[]), base_url="http://127.0.0.1:9", api_key="a-secret"
    )
    assert b"a-secret" not in pickle.dumps(served)
    assert "a-secret" not in repr(served)
    with pytest.raises(ValueError, match="was given a scorer object"):
        pickle.dumps(over(documents()))


def test_documents_of_the_caller_are_unchanged() -> None:
    found = documents()
    ranked = over(found, include_logit=True).invoke(QUERY)
    assert found == documents()
    assert scores(ranked) == [sigmoid(3), sigmoid(2), sigmoid(1)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topn": 2}, "BGERerank has no option 'topn'; did you mean top_n?"),
        (
            {"reranker": word_overlap_rerank(), "top_n": 2},
            "top_n was given together with reranker=",
        ),
        ({"candidates": 0}, "greater than or equal to 1"),
        ({"candidates": "5"}, "not a number"),
        ({"base_retriever": "an index"}, "instance of Runnable"),
    ],
)
def test_invalid_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        BGERerankRetriever(**{"base_retriever": Foxes(found=[]), **fields})


@pytest.mark.parametrize(
    ("found", "message"),
    [(list(TEXTS), "position 0 is str, not a Document"), ("text", "documents is str")],
)
def test_a_search_that_finds_no_documents_is_named(found: Any, message: str) -> None:
    retriever = BGERerankRetriever(
        base_retriever=RunnableLambda(lambda query: found), scorer=WordOverlapScorer()
    )
    with pytest.raises(InvalidInputError, match=message):
        retriever.invoke(QUERY)
