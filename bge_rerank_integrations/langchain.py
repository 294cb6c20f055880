"""BGE models in LangChain: a retriever, a document compressor, a cross-encoder and embeddings.

`BGERerankRetriever` reranks the documents of another retriever. `BGERerank` is a document
compressor and a step of an LCEL chain. `BGECrossEncoder` is a model for `CrossEncoderReranker`,
and `BGEEmbeddings` one for vector stores. Documents are never changed: results are copies.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from bge_rerank_integrations.base.contract import (
    check_text,
    checked_scores,
    is_blank,
    read_pairs,
    show_score,
)
from bge_rerank_integrations.base.deadline import in_worker
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import InvalidInputError, RerankError, missing_extra
from bge_rerank_integrations.types import Pair, RerankResult

with missing_extra("langchain"):
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
        adispatch_custom_event,
        dispatch_custom_event,
    )
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
    from langchain_core.runnables.base import RunnableBindingBase

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from bge_rerank_integrations.adapter_base import (
    NOTE_KEYS,
    EmbedderFields,
    OnTrace,
    RerankFields,
    ScorerFields,
    read_items,
)
from bge_rerank_integrations.base.option_group import Count, write_out
from bge_rerank_integrations.options import Normalize, TopN
from bge_rerank_integrations.ranking.reranker import check_top_n
from bge_rerank_integrations.ranking.telemetry import under_run

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = [
    "TRACE_EVENT",
    "BGECrossEncoder",
    "BGEEmbeddings",
    "BGERerank",
    "BGERerankRetriever",
    "RerankInput",
]

TRACE_EVENT = "bge_rerank_trace"
"""Name of the custom event with `RerankTrace.as_dict()`, which holds no texts."""


class RerankInput(TypedDict):
    """The input of `BGERerank` in a chain; further keys are ignored."""

    documents: Sequence[Document]
    query: str


class BGERerank(RerankFields, BaseDocumentCompressor, Runnable[RerankInput, list[Document]]):
    """Sorts documents by relevance to a query, best first, and keeps `top_n` of them.

    It is a document compressor, and a step of a chain from `{"documents", "query"}` to documents:
    `{"documents": retriever, "query": RunnablePassthrough()} | BGERerank()`. A retriever's output
    does not hold the query; `BGERerankRetriever` retrieves and reranks in one step.

    Each returned document is a copy with its score in the metadata under `score_key`: a sigmoid in
    (0, 1), or the raw logit with `normalize=False`. Everything else (id, class, other metadata) is
    the caller's. Documents are always sorted by raw score; ties keep the caller's order.

    The score is None for a document that was not scored. One with a blank `page_content` comes
    last, or is dropped if there is a threshold or cut-off (see `no_text`). If the query is blank,
    the first `top_n` documents are returned in the caller's order. Both cases are logged. If
    scoring fails and `on_error` is "keep", the missing scores are None too, and
    metadata["rerank_scored"] is False.

    With `explain`, metadata["rerank_evidence"] is the sentence of the `page_content` that answers
    best, and "rerank_evidence_start", "_end" and "_score" are its offsets and score; all are None
    without one.
    """

    top_n: TopN = 3
    metadata_keys: list[str] = []  # noqa: RUF012  # pydantic copies it
    """Metadata to score with the text: a line 'key: value' for each key that the document has, then
    an empty line and the text."""
    score_key: Annotated[str, Field(min_length=1)] = "relevance_score"
    """Metadata key of the score."""

    name: ClassVar[str] = "BGERerank"  # type: ignore[misc]  # a field of Runnable
    _bge_item: ClassVar[str] = "document"

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents with their scores, best first.

        The call is a run named "BGERerank" under `callbacks`, or under the current run. Without
        documents or with a blank query, no run starts and no model is loaded.

        Raises `InvalidInputError` (a `ValueError`) before the run starts if the query is not text
        or, with its position, an item is not a document; and whatever the scorer raises.
        """
        request = _read_request({"documents": documents, "query": query})
        if _nothing_to_score(request):
            return self._bge_compress(request)
        return self.as_runnable().invoke(request, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` on a worker thread; cancelling the task stops it between batches."""
        request = _read_request({"documents": documents, "query": query})
        if _nothing_to_score(request):
            return self._bge_compress(request)
        return await self.ainvoke(request, {"callbacks": callbacks})

    def invoke(
        self,
        input: RerankInput,  # noqa: A002  # LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`compress_documents` as a step of a chain; invalid input raises inside the step's run."""
        return self.as_runnable().invoke(input, config, **kwargs)

    async def ainvoke(
        self,
        input: RerankInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`acompress_documents` as a step of a chain."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RerankError(
                "LangChain's runs need asyncio, and no asyncio loop runs here; under trio, call "
                "the sync method on a thread: await trio.to_thread.run_sync(...)"
            ) from None
        return await self.as_runnable().ainvoke(input, config, **kwargs)

    def as_runnable(self) -> Runnable[Any, list[Document]]:
        """The step alone, without the methods of a compressor."""
        return RunnableLambda(self._bge_compress, self._bge_acompress, name=self.name)

    def _bge_compress(
        self, request: RerankInput, run_manager: Any = None, send: OnTrace | None = None
    ) -> list[Document]:
        request = _read_request(request)
        query, documents = request["query"], request["documents"]
        own_texts = [document.page_content for document in documents]
        if not is_blank(query):
            self.check_texts(own_texts, lambda index: f"the document at position {index}")
        # record a trace only if a handler of the run takes custom events
        handlers = [] if run_manager is None else run_manager.handlers
        listens = any(not handler.ignore_custom_event for handler in handlers)
        with under_run(handlers, getattr(run_manager, "run_id", None)):
            order = self.rank(
                query,
                [self._bge_text(document) for document in documents],
                own_texts,
                on_trace=(send or _send_trace) if listens else None,
                read_texts=own_texts,
                ids=[document.id for document in documents],
            )
        return [self._bge_with_score(documents[index], result) for index, result in order]

    async def _bge_acompress(self, request: RerankInput, run_manager: Any) -> list[Document]:
        traces: list[RerankTrace] = []
        ranked = await in_worker(self._bge_compress, request, run_manager, traces.append)
        for trace in traces:  # on the event loop of the async handlers, like other events
            await adispatch_custom_event(TRACE_EVENT, trace.as_dict())
        return ranked

    def _bge_text(self, document: Document) -> str:
        lines = [
            f"{key}: {document.metadata[key]}"
            for key in self.metadata_keys
            if document.metadata.get(key) is not None
        ]
        heading = "\n".join(lines)
        return f"{heading}\n\n{document.page_content}" if heading else document.page_content

    def _bge_with_score(self, document: Document, result: RerankResult | None) -> Document:
        score = result.score if result is not None and result.scored else None
        notes = {self.score_key: score, **self.notes(result, document.metadata)}
        return document.model_copy(update={"metadata": {**document.metadata, **notes}})

    @model_validator(mode="after")
    def _bge_check_metadata_keys(self) -> Self:
        written = NOTE_KEYS.union({self.score_key}).intersection(self.metadata_keys)
        if written:
            raise ValueError(
                f"metadata_keys holds {min(written)!r}, which BGERerank writes: a second pass "
                "would score another text; leave it out or change score_key"
            )
        return self


def read_reranker(reranker: BGERerank | None, options: dict[str, Any]) -> BGERerank:
    """The given reranker, or one with these options; raises `InvalidInputError` for both."""
    if reranker is None:
        return BGERerank(**options)
    if options:
        raise InvalidInputError(
            f"{min(options)} was given together with reranker=, which has its own: set it there"
        )
    return reranker


class BGERerankRetriever(BaseRetriever):
    """Reranks the documents that another retriever finds and keeps the best, best first.

    It takes the options of `BGERerank`, or a ready `reranker`:
    `BGERerankRetriever(base_retriever=search, model="BAAI/bge-reranker-v2-m3", top_n=3)`. Documents
    are returned as `BGERerank` returns them. `invoke(query, top_n=1)` overrides `top_n` for one
    call (None: all); other keywords go to the base retriever.

    `candidates` sets how many documents a copy of the base retriever looks for, by its
    `search_kwargs` or its `k`, also inside `with_config` and `with_retry`. No more than that are
    reranked. An MMR search finds at most its `fetch_k`.

    The search and the rerank are child runs. Pickles hold settings only. Raises what the base
    retriever and `BGERerank.compress_documents` raise.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_retriever: RetrieverLike
    """Finds the documents for a query."""
    reranker: BGERerank
    """Sorts the documents and cuts the list."""
    candidates: Count = None
    """Maximum documents to rerank; None: all that are found."""

    def __init__(
        self,
        *,
        base_retriever: RetrieverLike,
        reranker: BGERerank | None = None,
        candidates: int | None = None,
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in type(self).model_fields if name in options}
        super().__init__(
            base_retriever=base_retriever,  # type: ignore[call-arg]  # a field
            reranker=read_reranker(reranker, options),
            candidates=candidates,
            **own,
        )

    write_out(__init__, BGERerank)

    def to_tool(self, name: str, description: str, **options: Any) -> "BaseTool":
        """A tool for an agent: it turns a query into texts, with the documents as the artifact.

        `options` are those of `create_retriever_tool`, such as a `document_prompt`: without one the
        model sees each document's text.
        """
        from langchain_core.tools import create_retriever_tool  # slow to import, rarely needed

        return create_retriever_tool(
            self, name, description, response_format="content_and_artifact", **options
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | None = -1,
        **kwargs: Any,
    ) -> list[Document]:
        search, reranker = self._bge_search_and_reranker(top_n)
        found = search.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        first = _read_documents(found)[: self.candidates]
        return reranker.compress_documents(first, query, run_manager.get_child())

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | None = -1,
        **kwargs: Any,
    ) -> list[Document]:
        search, reranker = self._bge_search_and_reranker(top_n)
        found = await search.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        first = _read_documents(found)[: self.candidates]
        return await reranker.acompress_documents(first, query, run_manager.get_child())

    def _bge_search_and_reranker(self, top_n: int | None) -> tuple[RetrieverLike, BGERerank]:
        """The search and the reranker for one call; a `top_n` of -1 leaves the reranker's own."""
        search, reranker = self.base_retriever, self.reranker
        if self.candidates is not None:
            search = _with_k(self.candidates, search)
        if top_n != -1:
            reranker = reranker.model_copy(update={"top_n": check_top_n(top_n)})
        return search, reranker


def _with_k(count: int, retriever: Any) -> Any:
    """A copy of the retriever that finds `count` documents; itself if it has no such setting."""
    if isinstance(retriever, RunnableBindingBase):
        update: dict[str, Any] = {"bound": _with_k(count, retriever.bound)}
    else:
        fields = getattr(type(retriever), "model_fields", {})
        if "search_kwargs" in fields:
            update = {"search_kwargs": {**retriever.search_kwargs, "k": count}}
        elif "k" in fields:
            update = {"k": count}
        else:
            return retriever
    return retriever.model_copy(update=update)


class BGECrossEncoder(ScorerFields, BaseCrossEncoder):
    """A BGE reranker as the `model` of a `CrossEncoderReranker`, or to score pairs directly.

    Scores are sigmoids in (0, 1), as `HuggingFaceCrossEncoder` gives for a model of one label;
    `normalize=False` gives the raw logits.
    """

    normalize: Normalize = True

    def score(self, text_pairs: Sequence[Pair]) -> list[float]:
        """Return one Python float per (query, passage) pair, in the same order.

        Pairs of several queries may be mixed. An empty list gives an empty list and loads no model.
        Raises `InvalidInputError`, with its position, for an item that is not a pair of texts, and
        whatever the scorer raises.
        """
        pairs = read_pairs(text_pairs)
        if not pairs:
            return []
        scorer = self.loaded_scorer()
        raw = checked_scores(scorer, pairs)
        return [show_score(score, scorer.scale, normalize=self.normalize) for score in raw.tolist()]


class BGEEmbeddings(EmbedderFields, Embeddings):
    """Computes the unit vectors of a BGE embedder for a vector store and its queries.

    A query gets the `query_instruction`, by default the model card's. Weights are loaded at first
    use and shared within the process; a pickle holds the settings only.

    Raises `UnsupportedModel` for a reranker, and what loading and scoring raise.
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of Python floats for each text."""
        return self.embed(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return the query's vector."""
        return self.embed([text], as_queries=True)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` on a worker thread; cancelling the task stops it between batches."""
        return await in_worker(self.embed, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` on a worker thread."""
        return (await in_worker(self.embed, [text], as_queries=True))[0]


def _send_trace(trace: RerankTrace) -> None:
    dispatch_custom_event(TRACE_EVENT, trace.as_dict())


def _nothing_to_score(request: RerankInput) -> bool:
    return not request["documents"] or is_blank(request["query"])


def _read_request(request: Any) -> RerankInput:
    """The validated request, with a new list of documents; raises `InvalidInputError`."""
    if not isinstance(request, Mapping) or not {"documents", "query"} <= request.keys():
        has = sorted(map(str, request)) if isinstance(request, Mapping) else type(request).__name__
        raise InvalidInputError(
            f'the input must be a mapping with "documents" and "query"; it is {has}: write '
            '{"documents": retriever, "query": RunnablePassthrough()} | BGERerank(...), or '
            "BGERerankRetriever(base_retriever=retriever, ...)"
        )
    query, documents = request["query"], _read_documents(request["documents"])
    if query is None:
        raise InvalidInputError("no query was given; reranking orders documents for a query")
    if not isinstance(query, str):
        check_text(query, "query")
    return {"documents": documents, "query": query}


def _read_documents(given: Any) -> list[Document]:
    documents = read_items(given, Document, "document", _remedy)
    for index, document in enumerate(documents):
        text: object = document.page_content
        if not isinstance(text, str):  # possible with model_construct
            check_text(text, "page_content of the document", index)
    return documents


def _remedy(item: Any) -> str:
    if hasattr(item, "get_content"):  # a node of LlamaIndex
        return "convert it: Document(page_content=node.get_content(), metadata=...)"
    if isinstance(item, Mapping) and "page_content" in item:
        return "rebuild it: Document(**item)"
    return "wrap a text as Document(page_content=text)"
