"""BGE rerankers for LangChain agents: a middleware that reranks the documents that tools find.

Needs the package `langchain`; a tool from a retriever, `BGERerankRetriever.to_tool`, does not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from bge_rerank_integrations.errors import InvalidInputError, missing_extra

with missing_extra("langchain-agents"):
    from langchain.agents.middleware.types import AgentMiddleware
    from langchain_core.documents import Document
    from langchain_core.messages import ToolMessage
    from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document

from bge_rerank_integrations.base.option_group import write_out
from bge_rerank_integrations.langchain import BGERerank, read_reranker

if TYPE_CHECKING:
    from langchain.agents.middleware.types import ToolCallRequest
    from langgraph.types import Command

__all__ = ["BGERerankMiddleware"]

logger = logging.getLogger("bge_rerank_integrations")


class BGERerankMiddleware(AgentMiddleware[Any, Any]):
    """Reranks the documents that a tool of an agent found, before the model sees them.

    `create_agent(model, tools, middleware=[BGERerankMiddleware(top_n=3)])`. It takes the options of
    `BGERerank`, or a ready `reranker`, and acts on every tool whose message has a list of documents
    as its artifact, such as those of `create_retriever_tool(...,
    response_format="content_and_artifact")`; or only on those in `tool_names`. All other messages
    pass unchanged: plain text does not show which documents it came from.

    The new message has the best documents, with scores, as its artifact. Its content is each
    document as `document_prompt` formats it (by default its text), joined by `document_separator`.
    If a tool formats its documents differently, a warning names the tool once.

    The query is the tool's argument `query_argument`, or else its only text argument. Raises
    `InvalidInputError` if there is none, and what `BGERerank.compress_documents` raises.
    """

    def __init__(
        self,
        reranker: BGERerank | None = None,
        *,
        tool_names: Collection[str] | None = None,
        query_argument: str = "query",
        document_prompt: BasePromptTemplate[str] | None = None,
        document_separator: str = "\n\n",
        **options: Any,
    ) -> None:
        if isinstance(tool_names, str):
            raise InvalidInputError(
                f"tool_names is {tool_names!r}; it must be a list, such as [{tool_names!r}]"
            )
        super().__init__()
        self.reranker = read_reranker(reranker, options)
        self._bge_tool_names = tool_names
        self._bge_query_argument = query_argument
        self._bge_prompt = document_prompt or PromptTemplate.from_template("{page_content}")
        self._bge_separator = document_separator
        self._bge_warned: set[str] = set()

    write_out(__init__, BGERerank)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """Call the tool and rerank the documents that it found."""
        message = handler(request)
        if not (found := self._bge_documents(request, message)):
            return message
        ranked = self.reranker.compress_documents(found, self._bge_query(request))
        return self._bge_rewritten(message, request, ranked)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """`wrap_tool_call` for async agents; reranks on a worker thread."""
        message = await handler(request)
        if not (found := self._bge_documents(request, message)):
            return message
        ranked = await self.reranker.acompress_documents(found, self._bge_query(request))
        return self._bge_rewritten(message, request, ranked)

    def _bge_documents(self, request: ToolCallRequest, message: object) -> list[Document]:
        names = self._bge_tool_names
        if not isinstance(message, ToolMessage) or not isinstance(message.artifact, list | tuple):
            return []
        is_meant = names is None or request.tool_call["name"] in names
        found = list(message.artifact)
        return found if is_meant and all(isinstance(one, Document) for one in found) else []

    def _bge_query(self, request: ToolCallRequest) -> str:
        call = request.tool_call
        texts = {name: text for name, text in call["args"].items() if isinstance(text, str)}
        query = texts.get(self._bge_query_argument)
        if query is None and len(texts) == 1:
            (query,) = texts.values()
        if query is None:
            raise InvalidInputError(
                f"the tool {call['name']!r} found documents, but its call has no text "
                f"{self._bge_query_argument!r}; its arguments are {sorted(call['args'])}: set "
                "query_argument to the one that holds the query, or leave the tool out of "
                "tool_names"
            )
        return query

    def _bge_rewritten(
        self, message: Any, request: ToolCallRequest, ranked: list[Document]
    ) -> ToolMessage:
        name = request.tool_call["name"]
        if name not in self._bge_warned and message.content != self._bge_content(message.artifact):
            self._bge_warned.add(name)
            logger.warning(
                "The tool %r formats its documents differently from BGERerankMiddleware; set "
                "document_prompt and document_separator to keep the tool's format.",
                name,
            )
        update = {"content": self._bge_content(ranked), "artifact": ranked}
        rewritten: ToolMessage = message.model_copy(update=update)
        return rewritten

    def _bge_content(self, documents: Sequence[Document]) -> str:
        return self._bge_separator.join(format_document(one, self._bge_prompt) for one in documents)
