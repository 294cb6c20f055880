"""A LlamaIndex `AgentWorkflow` whose search tool reranks: its LLM reads the best three of twenty.

    python examples/llama_index_agent.py "When was oxygen named?"

With OPENAI_MODEL set, and OPENAI_BASE_URL and OPENAI_API_KEY if the server needs them, that model
answers. Otherwise a stand-in calls the tool with the question and repeats the first passage.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from first_stage import arguments, choose_model, open_first_stage
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index_query_engine import FirstStageRetriever

from bge_rerank_integrations.llama_index import BGERerank


def answer(messages: Sequence[ChatMessage], **options: Any) -> ChatMessage:
    """Call the tool with the question, or repeat the first passage of its answer."""
    del options
    last = messages[-1]
    if last.role == MessageRole.TOOL:
        return ChatMessage(role="assistant", content=str(last.content).partition("\n")[0])
    call = ToolCallBlock(tool_call_id="1", tool_name="search", tool_kwargs={"query": last.content})
    return ChatMessage(role="assistant", blocks=[call])


def open_llm() -> FunctionCallingLLM:
    """The model of the environment, or the stand-in; says which."""
    name = os.environ.get("OPENAI_MODEL")
    if not name:
        print("LLM: a stand-in; set OPENAI_MODEL for another.")
        return MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)
    from llama_index.llms.openai_like import OpenAILike

    print(f"LLM: {name}")
    llm: FunctionCallingLLM = OpenAILike(
        model=name,
        api_base=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        is_chat_model=True,
        is_function_calling_model=True,
    )
    return llm


def build_tool(retriever: BaseRetriever, reranker: BGERerank) -> FunctionTool:
    """A tool that takes a query and returns the passages that the reranker keeps.

    LlamaIndex's `RetrieverTool` would search for "input is ..." followed by the query.
    """

    async def search(query: str) -> str:
        found = await retriever.aretrieve(query)
        kept = await reranker.apostprocess_nodes(found, query_str=query)
        for node in kept:
            print(f"  {node.score:.4f}  {node.text}")
        return "\n".join(node.text for node in kept)

    return FunctionTool.from_defaults(
        async_fn=search, description="Finds sentences of Wikipedia that answer a question."
    )


async def ask(workflow: AgentWorkflow, question: str) -> str:
    """The workflow's answer."""
    return str(await workflow.run(user_msg=question))


def main() -> None:
    """Ask one question."""
    parser = arguments("Ask a LlamaIndex agent over 1,175 sentences of Wikipedia.")
    parser.add_argument(
        "question", nargs="?", default="What researcher first used the word oxygen?"
    )
    options = parser.parse_args()
    reranker = BGERerank(model=choose_model(options.model), top_n=3)
    retriever = FirstStageRetriever(open_first_stage(options.first_stage), count=20)
    agent = FunctionAgent(name="reader", tools=[build_tool(retriever, reranker)], llm=open_llm())

    print(f"\n{options.question}")
    print(f"\nAnswer: {asyncio.run(ask(AgentWorkflow(agents=[agent]), options.question))}")


if __name__ == "__main__":
    main()
