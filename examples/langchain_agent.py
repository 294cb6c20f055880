"""A LangGraph agent whose search tool reranks: its model reads the best three of twenty passages.

    python examples/langchain_agent.py "When was oxygen named?"

With OPENAI_MODEL set, and OPENAI_BASE_URL and OPENAI_API_KEY if the server needs them, that model
answers. Otherwise a stand-in calls the tool with the question and repeats the first passage.
"""

import os
from typing import Any

from first_stage import arguments, choose_model, open_first_stage
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_retriever import build_retriever

from bge_rerank_integrations.langchain import BGERerank

TOOL = "search"


class StandIn(BaseChatModel):
    """Calls the tool with the question, then repeats the first passage of its answer."""

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        del tools, options  # there is one tool, and its name is known
        return self

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        del stop, run_manager, options
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(str(last.content).partition("\n\n")[0])
        else:
            call = {"name": TOOL, "args": {"query": last.content}, "id": "1"}
            answer = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=answer)])


def open_llm() -> BaseChatModel:
    """The model of the environment, or the stand-in; says which."""
    name = os.environ.get("OPENAI_MODEL")
    if not name:
        print("LLM: a stand-in; set OPENAI_MODEL for another.")
        return StandIn()
    from langchain_openai import ChatOpenAI

    print(f"LLM: {name}")
    return ChatOpenAI(model=name)


def main() -> None:
    """Ask one question, print what the model read, and its answer."""
    parser = arguments("Ask a LangGraph agent over 1,175 sentences of Wikipedia.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen?"
    )
    options = parser.parse_args()
    reranker = BGERerank(model=choose_model(options.model), top_n=3)
    retriever = build_retriever(open_first_stage(options.first_stage), reranker)
    tool = retriever.to_tool(TOOL, "Finds sentences of Wikipedia that answer a question.")
    agent = create_agent(open_llm(), [tool])

    request: Any = {"messages": [HumanMessage(options.question)]}
    messages = agent.invoke(request)["messages"]

    print(f"\n{options.question}")
    for message in messages:
        if isinstance(message, ToolMessage):
            for document in message.artifact:
                print(f"  {document.metadata['relevance_score']:.4f}  {document.page_content}")
    print(f"\nAnswer: {messages[-1].content}")


if __name__ == "__main__":
    main()
