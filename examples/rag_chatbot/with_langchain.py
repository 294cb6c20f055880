"""The chatbot on LangChain: a chain of a retriever, the reranker, a prompt and a chat model."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnablePassthrough

from bge_rerank_integrations.langchain import BGERerank, BGERerankRetriever
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

REPHRASE = (
    "Write this question so that it can be understood without the conversation, in its own "
    "language. Give nothing but the question."
)
ANSWER = ChatPromptTemplate.from_messages(
    [
        ("system", PROMPT + "\n\n{passages}"),
        MessagesPlaceholder("history"),
        ("human", "{question}"),
    ]
)
CONDENSE = ChatPromptTemplate.from_messages(
    [
        MessagesPlaceholder("history"),
        (
            "human",
            REPHRASE + "\n\n{question}",
        ),
    ]
)


class HybridRetriever(BaseRetriever):
    """The first stage as a LangChain retriever."""

    search: Any  # a Search, which pydantic cannot check
    count: int

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        del run_manager  # nothing runs below this
        return [
            Document(id=passage.id, page_content=passage.text, metadata={"source": passage.source})
            for passage, _ in self.search(query, self.count)
        ]


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
    retriever = HybridRetriever(search=search, count=count)
    found: Runnable[str, list[Document]] = retriever
    if reranker is not None:
        found = BGERerankRetriever(base_retriever=retriever, reranker=reranker)
    if llm is None:
        yield from stream_extract(_sources(found.invoke(question)))
        return

    from openai import OpenAIError

    sources: list[Source] | None = None
    text = ""
    try:
        messages = [(turn["role"], turn["content"]) for turn in history]
        for step in _chain(found, llm).stream({"question": question, "history": messages}):
            if "documents" in step:
                sources = _sources(step["documents"])
            if "answer" in step:
                text += step["answer"]
                yield Answer(text, tuple(sources or ()))
    except OpenAIError as error:
        raise AnswerFailed(llm.failure(error), sources or ()) from error
    if sources:
        yield check_citations(Answer(text, tuple(sources)))


def _chain(found: Runnable[str, list[Document]], llm: LanguageModel) -> Runnable[Any, Any]:
    """From question and history to documents, then the pieces of the answer."""
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        model=llm.model,
        base_url=llm.url,
        api_key=SecretStr(llm.key),
        max_retries=1,
        timeout=120.0,
        streaming=True,
    )
    whole_question = RunnableBranch(
        (itemgetter("history"), CONDENSE | model | StrOutputParser()),
        itemgetter("question"),
    )
    told = RunnablePassthrough.assign(passages=lambda state: _numbered(state["documents"]))
    reply = RunnableBranch(
        (itemgetter("documents"), told | ANSWER | model | StrOutputParser()),
        lambda _: NOTHING_FOUND,
    )
    return RunnablePassthrough.assign(documents=whole_question | found).assign(answer=reply)


def _numbered(documents: Sequence[Document]) -> str:
    return "\n\n".join(
        f"[{number}] {document.page_content}" for number, document in enumerate(documents, start=1)
    )


def _sources(documents: Sequence[Document]) -> list[Source]:
    return [
        Source(
            number,
            document.page_content,
            document.metadata["source"],
            document.metadata.get("relevance_score"),
            sentence_at(document.metadata),
        )
        for number, document in enumerate(documents, start=1)
    ]
