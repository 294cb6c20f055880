"""The chatbot on LlamaIndex: a condense-plus-context chat engine with the reranker behind it."""

from collections.abc import Iterator, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_rerank_integrations.llama_index import BGERerank
from rag_chatbot.answers import (
    NOTHING_FOUND,
    PROMPT,
    Answer,
    AnswerFailed,
    Source,
    Turn,
    check_citations,
    sentence_at,
    stream_extract,
)
from rag_chatbot.search import Search
from rag_chatbot.settings import LanguageModel

# the question comes as a message of its own
CONTEXT_PROMPT = PROMPT + "\n\n{context_str}"


class HybridRetriever(BaseRetriever):
    """The first stage as a LlamaIndex retriever."""

    def __init__(self, search: Search, *, count: int) -> None:
        super().__init__()
        self._search = search
        self._count = count

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=TextNode(
                    id_=passage.id,
                    text=passage.text,
                    metadata={"source": passage.source},
                    # the reranker is to score the text alone
                    excluded_embed_metadata_keys=["source"],
                    excluded_llm_metadata_keys=["source"],
                ),
                score=score,
            )
            for passage, score in self._search(query_bundle.query_str, self._count)
        ]


class Numbered(BaseNodePostprocessor):
    """Puts [1], [2] and so on before what the language model reads of each node."""

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex's serialized components carry."""
        return "Numbered"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        del query_bundle  # numbers do not depend on it
        numbered = []
        for number, found in enumerate(nodes, start=1):
            node = found.node.model_copy(
                update={
                    "metadata": {**found.node.metadata, "number": number},
                    "metadata_template": "[{value}]",
                    "text_template": "{metadata_str} {content}",
                }
            )
            numbered.append(found.model_copy(update={"node": node}))
        return numbered


def answer(
    question: str,
    history: Sequence[Turn],
    *,
    search: Search,
    count: int,
    reranker: BGERerank | None,
    llm: LanguageModel | None,
) -> Iterator[Answer]:
    """Yield the answer as it is written, from the best of `count` passages that `search` finds.

    Without a reranker (chatbot.py makes it) all of them are kept. Raises `AnswerFailed` if the
    language model fails.
    """
    retriever = HybridRetriever(search, count=count)
    rerankers = [] if reranker is None else [reranker]
    if llm is None:
        nodes = retriever.retrieve(question)
        for step in rerankers:
            nodes = step.postprocess_nodes(nodes, query_str=question)
        yield from stream_extract(_sources(nodes))
        return

    from openai import OpenAIError

    sources: list[Source] = []
    try:
        model = _language_model(llm)
        engine = CondensePlusContextChatEngine.from_defaults(
            retriever=retriever,
            llm=model,
            # the engine's own default leaves a database connection open for each question
            memory=ChatMemoryBuffer.from_defaults(llm=model),
            node_postprocessors=[*rerankers, Numbered()],
            context_prompt=CONTEXT_PROMPT,
        )
        messages = [ChatMessage(role=turn["role"], content=turn["content"]) for turn in history]
        response = engine.stream_chat(question, chat_history=messages)
        sources = _sources(response.source_nodes)
        if not sources:  # the engine did not call the language model
            yield Answer(NOTHING_FOUND, ())
            return
        text = ""
        for piece in response.response_gen:
            text += piece
            yield Answer(text, tuple(sources))
    except OpenAIError as error:
        raise AnswerFailed(llm.failure(error), sources) from error
    yield check_citations(Answer(text, tuple(sources)))


def _language_model(llm: LanguageModel) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=llm.model,
        api_base=llm.url,
        api_key=llm.key,
        is_chat_model=True,
        context_window=8192,
        max_retries=1,
        timeout=120.0,
    )


def _sources(nodes: Sequence[NodeWithScore]) -> list[Source]:
    return [
        Source(
            number,
            found.node.get_content(),
            found.node.metadata["source"],
            found.score if "rerank_evidence" in found.node.metadata else None,
            sentence_at(found.node.metadata),
        )
        for number, found in enumerate(nodes, start=1)
    ]
