"""Answer questions on either framework, and say when a model cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from bge_rerank_integrations.base.models import DEFAULT_MODEL
from rag_chatbot.languages import languages_of, reads
from rag_chatbot.normalize import normalized

if TYPE_CHECKING:
    from rag_chatbot.answers import Answer, Turn
    from rag_chatbot.search import Found, Index
    from rag_chatbot.settings import LanguageModel, RerankSettings

Framework = Literal["llama-index", "langchain"]


class Chatbot:
    """Answers questions from an index; any number of threads may ask.

    A reranker that was not trained on the question's language is left out, because its scores would
    have no meaning; the answer says so.
    """

    def __init__(
        self, framework: Framework, settings: RerankSettings, *, llm: LanguageModel | None = None
    ) -> None:
        self.framework = framework
        self.settings = settings
        self.llm = llm
        self._version: Any
        if framework == "llama-index":
            from rag_chatbot import with_llama_index

            self._version = with_llama_index
        else:
            from rag_chatbot import with_langchain

            self._version = with_langchain
        # either framework's adapter takes the same fields; the model loads with the first question
        scored_by = {"scorer": settings.scorer} if settings.scorer else {"model": settings.model}
        self._reranker = self._version.BGERerank(
            **scored_by,
            top_n=settings.top_n,
            score_threshold=settings.min_score,
            explain=True,
        )

    def warm_up(self) -> None:
        """Load the reranker now, so that its errors appear before the page is served."""
        self._reranker.warm_up()

    def ask(self, question: str, history: Sequence[Turn], index: Index) -> Iterator[Answer]:
        """Yield the answer as it is written; raises `AnswerFailed` and the reranker's errors."""
        model, settings = self.settings.model, self.settings
        question = normalized(question)
        trusted = settings.scorer is not None or reads(model, question)

        def search(words: str, count: int) -> Sequence[Found]:
            if not trusted or settings.scorer is not None:
                return index.search(words, count)
            return index.search(words, count, among=lambda one: reads(model, one.text))

        answers = self._version.answer(
            question,
            history,
            search=search,
            count=settings.candidates if trusted else settings.top_n,
            reranker=self._reranker if trusted else None,
            llm=self.llm,
        )
        for answer in answers:
            yield answer if trusted else replace(answer, notes=(*answer.notes, untrusted(model)))


def untrusted(model: str) -> str:
    """The note that a model's scores of a text have no meaning."""
    return (
        f"Not reranked: the model {model} reads {languages_of(model)} only. The order is that of "
        f"the first stage, and no model judged whether it answers. --model {DEFAULT_MODEL} reads "
        "more than 100 languages."
    )
