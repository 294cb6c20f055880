"""A retriever as a tool, and the middleware, inside agents that LangGraph runs."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.tools import BaseTool, create_retriever_tool, tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.langchain import BGERerankRetriever
from bge_rerank_integrations.langchain_agents import BGERerankMiddleware
from tests.fakes import WordOverlapScorer
from tests.langchain.foxes import QUERY, documents, positions, word_overlap_rerank
from tests.langchain.test_inside_langchain import Foxes, sync_and_async

RERANKED = "the red fox jumps\n\na fox jumps high"


class Caller(FakeMessagesListChatModel):
    """Calls a tool, and then answers; writes down what it read."""

    read: list[list[Any]] = []  # noqa: RUF012  # pydantic copies it

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(self, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        self.read.append(messages)
        return super()._generate(messages, *args, **kwargs)


def caller(name: str = "search", **arguments: Any) -> Caller:
    call = {"name": name, "args": arguments or {"query": QUERY}, "id": "call-1"}
    return Caller(responses=[AIMessage("", tool_calls=[call]), AIMessage("done")])


def search_tool(**options: Any) -> BaseTool:
    options = {"response_format": "content_and_artifact", **options}
    return create_retriever_tool(Foxes(found=documents()), "search", "Finds foxes.", **options)


def rerank(**options: Any) -> BGERerankMiddleware:
    return BGERerankMiddleware(**{"scorer": WordOverlapScorer(), "top_n": 2, **options})


def ask(model: Caller, tools: Sequence[BaseTool], *middleware: BGERerankMiddleware) -> ToolMessage:
    """The tool's message as the model read it."""
    agent = create_agent(model, tools, middleware=middleware)
    agent.invoke({"messages": [HumanMessage("where are foxes?")]})
    message = model.read[-1][-1]
    assert isinstance(message, ToolMessage)
    return message


def test_a_retriever_as_a_tool_hands_its_documents_on() -> None:
    retriever = BGERerankRetriever(
        base_retriever=Foxes(found=documents()), scorer=WordOverlapScorer(), top_n=2
    )
    made = retriever.to_tool("search", "Finds foxes.")
    assert (made.name, made.description, [*made.args]) == ("search", "Finds foxes.", ["query"])
    message = ask(caller(), [made])
    assert message.content == RERANKED
    assert message.artifact == retriever.invoke(QUERY)
    prompt = PromptTemplate.from_template("{position}: {page_content}")
    written = retriever.to_tool("a", "b", document_prompt=prompt, document_separator="\n")
    assert written.invoke(QUERY) == "1: the red fox jumps\n3: a fox jumps high"


@sync_and_async
async def test_the_model_reads_what_was_reranked(how: str) -> None:
    model, runs = caller(), RunCollectorCallbackHandler()
    agent = create_agent(
        model, [search_tool()], middleware=[rerank()], checkpointer=InMemorySaver()
    )
    config: Any = {"configurable": {"thread_id": "1"}, "callbacks": [runs]}
    asked: Any = {"messages": [HumanMessage("where are foxes?")]}
    if how == "sync":
        steps = list(agent.stream(asked, config, stream_mode="updates"))
    else:
        steps = [step async for step in agent.astream(asked, config, stream_mode="updates")]
    assert [*map(list, steps)] == [["model"], ["tools"], ["model"]]
    (streamed,) = steps[1]["tools"]["messages"]
    assert model.read[1][-1] == streamed
    assert streamed.content == RERANKED
    assert positions(streamed.artifact) == [1, 3]
    expected = word_overlap_rerank(top_n=2).compress_documents(documents(), QUERY)
    assert streamed.artifact == expected
    assert (streamed.tool_call_id, streamed.name) == ("call-1", "search")
    kept = agent.get_state(config).values["messages"]
    assert [type(message).__name__ for message in kept] == [
        *("HumanMessage", "AIMessage", "ToolMessage", "AIMessage")
    ]
    assert kept[2].content == RERANKED
    # langgraph writes an artifact's documents as dictionaries
    assert [Document(**document) for document in kept[2].artifact] == expected
    names = {run.name for run in descendants(runs.traced_runs[0])}
    assert {"search", "BGERerank"} <= names


def descendants(run: Any) -> list[Any]:
    return [run, *(below for child in run.child_runs for below in descendants(child))]


async def test_tokens_stream_past_it() -> None:
    agent = create_agent(caller(), [search_tool()], middleware=[rerank()])
    asked: Any = {"messages": [HumanMessage("where are foxes?")]}
    said = [message async for message, _ in agent.astream(asked, stream_mode="messages")]
    assert [message.content for message in said if isinstance(message, ToolMessage)] == [RERANKED]
    assert isinstance(said[-1], AIMessage)
    assert said[-1].content == "done"


@tool(response_format="content_and_artifact")
def by_question(question: str, limit: int) -> tuple[str, list[Document]]:
    """Finds foxes by a question."""
    found = documents()[:limit]
    return "\n".join(document.page_content for document in found), found


@tool
def weather(query: str) -> str:
    """Tells the weather."""
    return f"no rain over the {query}"


@tool(response_format="content_and_artifact")
def two_texts(first: str, second: str) -> tuple[str, list[Document]]:
    """Finds foxes."""
    return "", documents()


def test_the_only_text_of_a_call_is_its_query(caplog: pytest.LogCaptureFixture) -> None:
    lines = {"document_separator": "\n"}
    asked = caller("by_question", question=QUERY, limit=4)
    message = ask(asked, [by_question], rerank(**lines))
    assert message.content == RERANKED.replace("\n\n", "\n")
    named = ask(
        caller("two_texts", first="x", second=QUERY), [two_texts], rerank(query_argument="second")
    )
    assert positions(named.artifact) == [1, 3]
    with pytest.raises(
        InvalidInputError, match=r"no text 'query'; its arguments are \['first', 's"
    ):
        ask(caller("two_texts", first="x", second=QUERY), [two_texts], rerank())


def test_a_tool_that_writes_otherwise_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    prompt = PromptTemplate.from_template("[{position}] {page_content}")
    with caplog.at_level(logging.WARNING, logger="bge_rerank_integrations"):
        kept = ask(caller(), [search_tool(document_prompt=prompt)], rerank(document_prompt=prompt))
        assert kept.content == "[1] the red fox jumps\n\n[3] a fox jumps high"
        assert caplog.messages == []
        middleware = rerank()
        for _ in range(2):
            assert (
                ask(caller(), [search_tool(document_prompt=prompt)], middleware).content == RERANKED
            )
    assert len(caplog.messages) == 1
    assert "The tool 'search' formats its documents differently" in caplog.messages[0]


def test_other_messages_pass_unchanged() -> None:
    assert ask(caller("weather"), [weather], rerank()).content == f"no rain over the {QUERY}"
    plain = ask(caller(), [search_tool(response_format="content")], rerank())
    assert plain.content == "\n\n".join(document.page_content for document in documents())
    left = ask(caller(), [search_tool()], rerank(tool_names=["weather"]))
    assert left.artifact == documents()
    empty = create_retriever_tool(
        Foxes(found=[]), "search", "Finds none.", response_format="content_and_artifact"
    )
    assert ask(caller(), [empty], rerank()).artifact == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topn": 2}, "did you mean top_n"),
        ({"reranker": word_overlap_rerank()}, "was given together with reranker="),
        ({"tool_names": "search"}, r"it must be a list, such as \['search'\]"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rerank(**options)
