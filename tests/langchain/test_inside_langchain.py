"""Inside LangChain's own retrievers, pipelines and chains, with nothing of theirs replaced."""

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_text_splitters import CharacterTextSplitter

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.langchain import BGERerank, BGERerankRetriever
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import (
    QUERY,
    documents,
    positions,
    scores,
    sigmoid,
    word_overlap_rerank,
)

sync_and_async = pytest.mark.parametrize("how", ["sync", "async"])


class Foxes(BaseRetriever):
    """Finds all its documents, whatever the query, in their own order."""

    found: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return self.found


async def invoke(runnable: Runnable[Any, Any], how: str, *args: Any) -> Any:
    return runnable.invoke(*args) if how == "sync" else await runnable.ainvoke(*args)


@sync_and_async
async def test_contextual_compression_retriever(how: str) -> None:
    found, runs = documents(), RunCollectorCallbackHandler()
    retriever = ContextualCompressionRetriever(
        base_compressor=word_overlap_rerank(), base_retriever=Foxes(found=found)
    )
    for _ in range(2):  # the store's own documents come back each time
        ranked = await invoke(retriever, how, QUERY, {"callbacks": [runs]})
        assert positions(ranked) == [1, 3, 2]
        assert scores(ranked) == [sigmoid(3), sigmoid(2), sigmoid(1)]
        assert [document.id for document in ranked] == ["id-1", "id-3", "id-2"]
    assert found == documents()
    root = runs.traced_runs[0]
    assert root.name == "ContextualCompressionRetriever"
    assert [run.name for run in root.child_runs] == ["Foxes", "BGERerank"]
    assert root.child_runs[1].inputs["query"] == QUERY
    assert root.child_runs[1].outputs == {"output": ranked}


@sync_and_async
async def test_a_retriever_that_finds_nothing(how: str) -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=word_overlap_rerank(), base_retriever=Foxes(found=[])
    )
    assert await invoke(retriever, how, QUERY) == []


@sync_and_async
async def test_pipeline_after_a_splitter(how: str) -> None:
    runs = RunCollectorCallbackHandler()
    splitter = CharacterTextSplitter(separator=". ", chunk_size=20, chunk_overlap=0)
    pipeline = DocumentCompressorPipeline(transformers=[splitter, word_overlap_rerank(top_n=2)])
    page = Document(page_content="A lazy dog. The red fox jumps. A red car", metadata={"page": 4})
    if how == "sync":
        ranked = pipeline.compress_documents([page], QUERY, callbacks=[runs])
    else:
        ranked = await pipeline.acompress_documents([page], QUERY, callbacks=[runs])
    assert [document.page_content for document in ranked] == ["The red fox jumps", "A red car"]
    assert [document.metadata for document in ranked] == [
        {"page": 4, "relevance_score": sigmoid(3)},
        {"page": 4, "relevance_score": sigmoid(1)},
    ]
    assert [run.name for run in runs.traced_runs] == ["BGERerank"]  # the pipeline hands them on


@sync_and_async
async def test_two_rerankers_in_a_row_narrow_down(how: str) -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[
            word_overlap_rerank(top_n=4, score_key="first"),
            word_overlap_rerank(top_n=1, score_key="second", normalize=False),
        ]
    )
    if how == "sync":
        ranked = pipeline.compress_documents(documents(), QUERY)
    else:
        ranked = await pipeline.acompress_documents(documents(), QUERY)
    assert [document.metadata for document in ranked] == [
        {"position": 1, "first": sigmoid(3), "second": 3.0}
    ]


def as_context(ranked: list[Document]) -> str:
    return "\n".join(document.page_content for document in ranked)


def answer_chain(reranker: BGERerank) -> Runnable[str, str]:
    """Retrieval, reranking, a prompt, and a model that repeats the prompt."""
    search = {"documents": Foxes(found=documents()), "query": RunnablePassthrough()}
    prompt = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")
    return (
        {
            "context": search | reranker.as_runnable() | as_context,
            "question": RunnablePassthrough(),
        }
        | prompt
        | ParrotFakeChatModel()
        | StrOutputParser()
    )


ANSWER = "the red fox jumps\na fox jumps high\na red car\n\nQuestion: red fox jumps"


@sync_and_async
async def test_a_chain_from_retriever_to_model(how: str) -> None:
    assert await invoke(answer_chain(word_overlap_rerank()), how, QUERY) == ANSWER


async def test_a_chain_that_streams_and_one_in_batches() -> None:
    chain = answer_chain(word_overlap_rerank())
    assert "".join(chain.stream(QUERY)) == ANSWER
    assert "".join([chunk async for chunk in chain.astream(QUERY)]) == ANSWER
    assert chain.batch([QUERY, QUERY]) == [ANSWER, ANSWER]
    assert await chain.abatch([QUERY]) == [ANSWER]


@sync_and_async
async def test_the_step_takes_its_two_keys_out_of_a_larger_state(how: str) -> None:
    state = {"query": QUERY, "documents": documents(), "history": ["hello"]}
    reranked = RunnablePassthrough.assign(documents=word_overlap_rerank().as_runnable())
    after = await invoke(reranked, how, state)
    assert positions(after["documents"]) == [1, 3, 2]
    assert (after["query"], after["history"]) == (QUERY, ["hello"])
    assert state["documents"] == documents()


@sync_and_async
async def test_the_reranker_itself_is_a_step(how: str) -> None:
    runs, reranker = RunCollectorCallbackHandler(), word_overlap_rerank()
    search = {"documents": Foxes(found=documents()), "query": RunnablePassthrough()}
    chain = search | reranker | as_context
    assert await invoke(chain, how, QUERY, {"callbacks": [runs]}) == ANSWER.partition("\n\n")[0]
    (root,) = runs.traced_runs
    (step,) = [run for run in root.child_runs if run.name == "BGERerank"]
    assert (step.inputs["query"], step.child_runs) == (QUERY, [])
    request: Any = {"documents": documents(), "query": QUERY}
    assert await reranker.abatch([request]) == [reranker.compress_documents(documents(), QUERY)]


@sync_and_async
async def test_a_retriever_alone_before_it_is_told_the_lines_that_do(how: str) -> None:
    retriever: Any = Foxes(found=documents())
    chain = retriever | word_overlap_rerank()
    with pytest.raises(InvalidInputError) as refused:
        await invoke(chain, how, QUERY)
    said = str(refused.value)
    names = {"retriever": retriever, "RunnablePassthrough": RunnablePassthrough}
    for line in (
        '{"documents": retriever, "query": RunnablePassthrough()} | BGERerank(...)',
        "BGERerankRetriever(base_retriever=retriever, ...)",
    ):
        assert line in said
        written = line.replace(", ...)", ", scorer=scorer)").replace("(...)", "(scorer=scorer)")
        classes = {"BGERerank": BGERerank, "BGERerankRetriever": BGERerankRetriever}
        works = eval(written, {**names, **classes, "scorer": WordOverlapScorer()})
        assert positions(await invoke(works, how, QUERY)) == [1, 3, 2]


@pytest.mark.parametrize("kind", ["reranker", "step"])
def test_the_step_knows_its_types_and_name(kind: str) -> None:
    reranker = word_overlap_rerank()
    step: Runnable[Any, Any] = reranker if kind == "reranker" else reranker.as_runnable()
    assert step.get_name() == "BGERerank"
    schema = step.get_input_jsonschema()
    properties = schema.get("properties") or schema["$defs"]["RerankInput"]["properties"]
    assert set(properties) == {"documents", "query"}
    assert step.get_output_jsonschema()["type"] == "array"


def test_the_step_follows_later_changes_of_the_settings() -> None:
    reranker = word_overlap_rerank()
    step = reranker.as_runnable()
    reranker.top_n = 1
    assert positions(step.invoke({"documents": documents(), "query": QUERY})) == [1]
