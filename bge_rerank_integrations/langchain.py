"""BGE rerankers in LangChain: a retriever, a document compressor and a cross-encoder.

`BGERerankRetriever` reranks the documents of another retriever. `BGERerank` is a document
compressor, and through `as_runnable()` a step of an LCEL chain. `BGECrossEncoder` is the model of a
`CrossEncoderReranker`. Documents are never changed: results are copies.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
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
from bge_rerank_integrations.errors import InvalidInputError, missing_extra
from bge_rerank_integrations.types import Pair, RerankResult

with missing_extra("langchain"):
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
        Callbacks,
        adispatch_custom_event,
        dispatch_custom_event,
    )
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import Runnable, RunnableLambda
    from langchain_core.runnables.base import RunnableBindingBase

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from bge_rerank_integrations.adapter_base import (
    EVIDENCE_KEYS,
    NOTE_KEYS,
    OnTrace,
    RerankFields,
    ScorerFields,
    kind_of,
)
from bge_rerank_integrations.options import Count, Normalize, TopN, write_out
from bge_rerank_integrations.ranking.reranker import check_top_n
from bge_rerank_integrations.ranking.telemetry import under_run

if TYPE_CHECKING:
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.prompts import BasePromptTemplate
    from langchain_core.tools import BaseTool
else:
    try:
        from langchain_core.cross_encoders import BaseCrossEncoder
    except ModuleNotFoundError:  # langchain-core before 1.2.19: langchain_classic has its own

        class BaseCrossEncoder:
            """Registers its subclasses with langchain_classic's when they are first built.

            It does not inherit from that one, because importing it can take seconds and load
            torch, which `BGERerank` alone does not need.
            """

            def __new__(cls, *_args: object, **_fields: object) -> Self:
                if find_spec("langchain_classic"):
                    from langchain_classic.retrievers.document_compressors import cross_encoder

                    cross_encoder.BaseCrossEncoder.register(cls)
                return super().__new__(cls)


__all__ = [
    "TRACE_EVENT",
    "BGECrossEncoder",
    "BGERerank",
    "BGERerankRetriever",
    "BaseCrossEncoder",
    "RerankInput",
]

TRACE_EVENT = "bge_rerank_trace"
"""Name of the custom event with `RerankTrace.as_dict()`, which holds no texts."""


class RerankInput(TypedDict):
    """The input of `BGERerank.as_runnable()`; further keys are ignored."""

    documents: Sequence[Document]
    query: str


class BGERerank(RerankFields, BaseDocumentCompressor):
    """Keeps the documents that answer a query best, best first.

    Each document that comes back is a copy whose metadata holds its score under `score_key`: a
    sigmoid in (0, 1), or the raw logit with `normalize=False`. Everything else of it (id, class,
    other metadata) is the caller's. The order is always that of the raw scores; equal ones keep
    the caller's order.

    The score is None for a document that was not scored: one whose `page_content` is blank, which
    comes last, or is dropped where there is a threshold or cut-off (see `no_text`); and every
    document when the query is blank, which gives the first `top_n` in the caller's order. Both are
    logged. Where `on_error="keep"` stood in for a score, it is None too, and
    metadata["rerank_scored"] is False.

    With `explain` metadata["rerank_evidence"] is the sentence of the `page_content` that answers
    best, and "rerank_evidence_start", "_end" and "_score" say where it lies; all None without one.
    """

    top_n: TopN = 3
    metadata_keys: Annotated[
        list[str],
        Field(
            description="Metadata to score with the text: a line 'key: value' for each key that "
            "the document has, an empty line, the text."
        ),
    ] = []  # noqa: RUF012  # pydantic copies it
    document_formatter: Annotated[
        SkipJsonSchema[Callable[[Document], str] | None],
        Field(
            exclude=True,
            description="Gives the text to score, instead of `metadata_keys`; called on the worker "
            "thread in async use. Cannot be serialized.",
        ),
    ] = None
    score_key: Annotated[str, Field(min_length=1, description="Metadata key of the score.")] = (
        "relevance_score"
    )

    _item: ClassVar[str] = "document"

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents with their scores, best first.

        The work is a run of its own, "BGERerank", under `callbacks`, or under the run that this is
        called in. Nothing runs, and no model is loaded, without documents or with a blank query.

        Raises `InvalidInputError` (a ValueError) before the run starts for a query that is not
        text and for anything but a document, naming its position; and whatever the scorer raises.
        """
        request = _read_request({"documents": documents, "query": query})
        if _nothing_to_score(request):
            return self._compress(request)
        return self.as_runnable().invoke(request, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` on a worker thread; cancelling the task stops it between batches."""
        request = _read_request({"documents": documents, "query": query})
        if _nothing_to_score(request):
            return self._compress(request)
        return await self.as_runnable().ainvoke(request, {"callbacks": callbacks})

    def rerank(
        self,
        documents: Sequence[str | Document | Mapping[str, Any]],
        query: str,
        *,
        top_n: int | None = -1,
    ) -> list[dict[str, Any]]:
        """Return `{"index": ..., "relevance_score": ...}` for the best documents, best first.

        A document may be a string, a `Document`, a mapping with "text" whose other keys are its
        metadata, or a mapping with "page_content" and "metadata". `index` is its position in
        `documents`. `top_n=-1` is the field's own, None is all. Scores, the order and what raises
        are those of `compress_documents`; there is no run. With `explain` the keys of
        the evidence are there too.
        """
        limit = self.top_n if top_n == -1 else check_top_n(top_n)
        request = _read_request(
            {
                "documents": [_to_document(item, i) for i, item in enumerate(_items(documents))],
                "query": query,
            }
        )
        return [
            {
                "index": index,
                "relevance_score": result.score if result is not None and result.scored else None,
                **{
                    key: note
                    for key, note in self.notes(result, {}).items()
                    if key in EVIDENCE_KEYS
                },
            }
            for index, result in self._ranked(request, limit)
        ]

    def as_runnable(self, *, top_n: int | None = -1) -> Runnable[Any, list[Document]]:
        """A step of a chain that does what this does, from `{"documents", "query"}` to documents.

        After a retriever: `{"documents": retriever, "query": RunnablePassthrough()} | step`.
        Invalid input raises inside the step's run. `top_n=-1` is the field's own, None is all.
        """
        if top_n == -1:
            return RunnableLambda(self._compress, self._acompress, name="BGERerank")
        check_top_n(top_n)
        return RunnableLambda(
            partial(self._compress, top_n=top_n),
            partial(self._acompress, top_n=top_n),
            name="BGERerank",
        )

    def _compress(
        self,
        request: RerankInput,
        run_manager: Any = None,
        top_n: int | None = -1,
        send: OnTrace | None = None,
    ) -> list[Document]:
        request = _read_request(request)
        # a trace is recorded where a handler of the run takes custom events
        handlers = [] if run_manager is None else run_manager.handlers
        listens = any(not handler.ignore_custom_event for handler in handlers)
        limit = self.top_n if top_n == -1 else top_n
        with under_run(handlers, getattr(run_manager, "run_id", None)):
            ranked = self._ranked(request, limit, (send or _send_trace) if listens else None)
        return [self._with_score(request["documents"][index], result) for index, result in ranked]

    async def _acompress(
        self, request: RerankInput, run_manager: Any = None, top_n: int | None = -1
    ) -> list[Document]:
        traces: list[RerankTrace] = []
        ranked = await in_worker(self._compress, request, run_manager, top_n, traces.append)
        for trace in traces:  # on the loop of the async handlers, like the run's other events
            await adispatch_custom_event(TRACE_EVENT, trace.as_dict())
        return ranked

    def _ranked(
        self, request: RerankInput, top_n: int | None, on_trace: OnTrace | None = None
    ) -> list[tuple[int, RerankResult | None]]:
        query, documents = request["query"], request["documents"]
        own_texts = [document.page_content for document in documents]
        if _nothing_to_score(request):
            return self.rank(query, own_texts, own_texts, top_n=top_n)
        self.check_texts(own_texts, lambda index: f"the document at position {index}")
        return self.rank(
            query,
            [self._text(document, index) for index, document in enumerate(documents)],
            own_texts,
            top_n=top_n,
            on_trace=on_trace,
            read_texts=own_texts,
            ids=[document.id for document in documents],
        )

    def _text(self, document: Document, index: int) -> str:
        if self.document_formatter is not None:
            return check_text(self.document_formatter(document), "formatted document", index)
        lines = [
            f"{key}: {document.metadata[key]}"
            for key in self.metadata_keys
            if document.metadata.get(key) is not None
        ]
        heading = "\n".join(lines)
        return f"{heading}\n\n{document.page_content}" if heading else document.page_content

    def _with_score(self, document: Document, result: RerankResult | None) -> Document:
        scored = result is not None and result.scored
        scores = {self.score_key: result.score if result is not None and scored else None}
        scores |= self.notes(result, document.metadata)
        return document.model_copy(update={"metadata": {**document.metadata, **scores}})

    @model_validator(mode="after")
    def _text_is_settled(self) -> Self:
        if self.document_formatter is not None and self.metadata_keys:
            raise ValueError(
                "give metadata_keys or document_formatter, not both: the formatter has the metadata"
            )
        written = NOTE_KEYS.union({self.score_key}).intersection(self.metadata_keys)
        if written:
            raise ValueError(
                f"metadata_keys holds {min(written)!r}, which is written: a second pass would "
                "score another text; leave it out or change score_key"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_what_can_be_read_back(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.document_formatter is not None:
            raise InvalidInputError(
                "this adapter has a document_formatter, which cannot be written down and without "
                "which the scores are others; use metadata_keys to serialize or pickle it"
            )
        return super()._only_what_can_be_read_back(handler)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BGERerank):
            return NotImplemented
        return self.document_formatter == other.document_formatter and super().__eq__(other)


def read_reranker(reranker: BGERerank | None, options: dict[str, Any]) -> BGERerank:
    """The reranker that was given, or one with these options; raises `InvalidInputError`."""
    if reranker is None:
        return BGERerank(**options)
    if options:
        raise InvalidInputError(
            f"{min(options)} was given beside reranker=, which has its own: set it there"
        )
    return reranker


class BGERerankRetriever(BaseRetriever):
    """Reranks the documents that another retriever finds, and keeps the best, best first.

    The options of `BGERerank` are its own too: `BGERerankRetriever(base_retriever=search,
    model="BAAI/bge-reranker-v2-m3", top_n=3)`; or give a ready `reranker`. Documents come back as
    `BGERerank` returns them. `invoke(query, top_n=1)` keeps another number in one call (None: all);
    other keywords go to the base retriever.

    `candidates` asks a copy of the base retriever for so many documents, by its `search_kwargs` or
    its `k`, also within `with_config` and `with_retry`. No more are reranked, whatever it brings.
    An MMR search brings at most its `fetch_k`.

    The search and the rerank are runs below this one's run. Pickles hold settings alone: see
    `BGERerank`. Raises what the base retriever and `BGERerank.compress_documents` raise.
    """

    base_retriever: Annotated[
        RetrieverLike, Field(description="Finds the documents: from a query to a list of them.")
    ]
    reranker: Annotated[BGERerank, Field(description="Orders the documents and cuts the list.")]
    candidates: Annotated[
        Count, Field(description="Most documents to rerank; None: all that are found.")
    ] = None

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

    def to_tool(
        self,
        name: str,
        description: str,
        *,
        document_prompt: "BasePromptTemplate[str] | None" = None,
        document_separator: str = "\n\n",
    ) -> "BaseTool":
        """A tool for an agent: from a query to texts, with the documents as the artifact.

        The model sees each document as `document_prompt` writes it, by default its text.
        """
        from langchain_core.tools import create_retriever_tool  # takes a while, and few need it

        return create_retriever_tool(
            self,
            name,
            description,
            document_prompt=document_prompt,
            document_separator=document_separator,
            response_format="content_and_artifact",
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | None = -1,
        **kwargs: Any,
    ) -> list[Document]:
        step = self.reranker.as_runnable(top_n=top_n)
        found = self._search().invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        request = {"documents": self._first(found), "query": query}
        return step.invoke(request, {"callbacks": run_manager.get_child()}) if found else []

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | None = -1,
        **kwargs: Any,
    ) -> list[Document]:
        step = self.reranker.as_runnable(top_n=top_n)
        search = self._search()
        found = await search.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        request = {"documents": self._first(found), "query": query}
        return await step.ainvoke(request, {"callbacks": run_manager.get_child()}) if found else []

    def _search(self) -> RetrieverLike:
        base = self.base_retriever
        return base if self.candidates is None else _asked_for(self.candidates, base)

    def _first(self, found: Any) -> list[Any]:
        return list(_items(found))[: self.candidates]


def _asked_for(count: int, retriever: Any) -> Any:
    """A copy of the retriever that finds so many documents; itself if it cannot be told."""
    if isinstance(retriever, RunnableBindingBase):
        update: dict[str, Any] = {"bound": _asked_for(count, retriever.bound)}
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
    """A BGE reranker as the `model` of a `CrossEncoderReranker`, or wherever pairs are scored.

    Scores are sigmoids in (0, 1), as `HuggingFaceCrossEncoder` gives for a model of one label;
    `normalize=False` gives the raw logits.
    """

    normalize: Normalize = True

    def score(self, text_pairs: Sequence[Pair]) -> list[float]:
        """Return one Python float per (query, passage) pair, in the same order.

        Pairs of several queries may be mixed. No pairs give no scores, without loading the model.
        Raises `InvalidInputError` with the position of anything but a pair of texts, and whatever
        the scorer raises.
        """
        pairs = read_pairs(text_pairs)
        if not pairs:
            return []
        scorer = self.loaded_scorer()
        raw = checked_scores(scorer, pairs)
        return [show_score(score, scorer.scale, normalize=self.normalize) for score in raw.tolist()]


def _send_trace(trace: RerankTrace) -> None:
    dispatch_custom_event(TRACE_EVENT, trace.as_dict())


def _nothing_to_score(request: RerankInput) -> bool:
    return not request["documents"] or is_blank(request["query"])


def _read_request(request: Any) -> RerankInput:
    """The request with a list of its own, checked; raises `InvalidInputError`."""
    if not isinstance(request, Mapping) or not {"documents", "query"} <= request.keys():
        has = sorted(map(str, request)) if isinstance(request, Mapping) else type(request).__name__
        raise InvalidInputError(
            f'the input must be a mapping with "documents" and "query"; it is {has}'
        )
    query, documents = request["query"], list(_items(request["documents"]))
    if query is None:
        raise InvalidInputError("no query was given; reranking orders documents for a query")
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            remedy = "wrap a text as Document(page_content=text)"
            if hasattr(document, "get_content"):  # a node of LlamaIndex
                remedy = "convert it: Document(page_content=node.get_content(), metadata=...)"
            elif isinstance(document, Mapping) and "page_content" in document:
                remedy = "rebuild it: Document(**item)"
            raise InvalidInputError(
                f"the item at position {index} is {kind_of(document)}, not a Document of "
                f"langchain_core; {remedy}",
                index=index,
            )
        text: object = document.page_content
        if not isinstance(text, str):  # possible by model_construct
            check_text(text, "page_content of the document", index)
    if not isinstance(query, str):
        check_text(query, "query")
    return {"documents": documents, "query": query}


def _items(documents: Any) -> Iterable[Any]:
    """The documents, which must be several things; raises `InvalidInputError`."""
    # all of these but None iterate, over characters, keys or fields: an error far from its cause
    if isinstance(documents, str | Mapping | Document) or not isinstance(documents, Iterable):
        raise InvalidInputError(
            f"documents is {type(documents).__name__}; pass a list of documents, [] for none"
        )
    return documents


def _to_document(item: Any, index: int) -> Any:
    """A string or mapping as a `Document`; anything else as it is, for `_read_request` to judge."""
    if isinstance(item, str):
        return Document(page_content=item)
    if not isinstance(item, Mapping):
        return item
    if "page_content" in item:
        text, metadata = item["page_content"], item.get("metadata") or {}
    elif "text" in item:
        text, metadata = item["text"], {key: item[key] for key in item if key != "text"}
    else:
        raise InvalidInputError(
            f'the document at position {index} has neither "text" nor "page_content"; '
            f"its keys are {sorted(map(str, item))}",
            index=index,
        )
    # checked here: pydantic's own message would hold the value
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"the metadata of the document at position {index} is {type(metadata).__name__}, "
            "not a mapping",
            index=index,
        )
    return Document(
        page_content=check_text(text, "text of the document", index), metadata=dict(metadata)
    )
