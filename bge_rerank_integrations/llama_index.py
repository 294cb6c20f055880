"""`BGERerank` for LlamaIndex: a node postprocessor that never changes the nodes it is given.

It works wherever LlamaIndex takes `node_postprocessors` (query engines, chat engines, retriever
tools, memory blocks), sync and async. Each call sends a `ReRankStartEvent`, a `BGERerankTraceEvent`
and a `ReRankEndEvent` to the instrumentation, and a `CBEventType.RERANKING` to the older callback
handlers. If scoring fails or is cancelled, the end event has no nodes, the older callback gets the
exception, and the surrounding span is dropped with it.
"""

from collections.abc import Iterable
from copy import copy
from typing import Any, ClassVar, Literal, Self

from bge_rerank_integrations.errors import InvalidInputError, missing_extra

with missing_extra("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import (
        BaseNode,
        MediaResource,
        MetadataMode,
        NodeWithScore,
        QueryBundle,
    )
    from llama_index_instrumentation import get_dispatcher
    from llama_index_instrumentation.base import BaseEvent
    from llama_index_instrumentation.event_handlers import NullEventHandler

from pydantic import Field, model_validator

from bge_rerank_integrations.adapter_base import NOTE_KEYS, EmbedderFields, RerankFields, read_items
from bge_rerank_integrations.base.contract import is_blank
from bge_rerank_integrations.base.deadline import in_worker
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.options import TopN
from bge_rerank_integrations.types import RerankResult

RETRIEVAL_SCORE_KEY = "retrieval_score"
"""Metadata key that `keep_retrieval_score` writes; LlamaIndex's own rerankers use it too."""

dispatcher = get_dispatcher(__name__)


class BGERerankTraceEvent(BaseEvent):
    """Sent between the start and end of a rerank: `RerankTrace.as_dict()`, without texts."""

    trace: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's events."""
        return "BGERerankTraceEvent"


def _send_trace(trace: RerankTrace) -> None:
    dispatcher.event(BGERerankTraceEvent(trace=trace.as_dict()))


def _handlers(kind: Literal["event_handlers", "span_handlers"]) -> list[Any]:
    """The handlers that our events or spans reach."""
    found: list[Any] = []
    reached: Any = dispatcher
    while reached is not None:
        found += getattr(reached, kind)
        reached = reached.parent if reached.propagate else None
    return found


def _events_are_handled() -> bool:
    return any(not isinstance(one, NullEventHandler) for one in _handlers("event_handlers"))


def _openinference_records_spans() -> bool:
    """Whether OpenInference already turns LlamaIndex's span of a rerank into a RERANKER span."""
    return any(
        type(one).__module__.startswith("openinference.") for one in _handlers("span_handlers")
    )


class BGERerank(RerankFields, BaseNodePostprocessor):
    """Sorts nodes by relevance to the query, best first, and keeps `top_n` of them.

    `postprocess_nodes(nodes, query_str=...)` and `apostprocess_nodes` return new `NodeWithScore`s
    over the caller's nodes. The score is a Python float on the scale that `normalize` chooses. A
    node without text of its own, whatever its metadata, is not scored and gets the score None: see
    `no_text`. If the query is blank, the first `top_n` nodes are returned in the given order with
    the score None, and a warning is logged; no cut-off applies and no event is sent. If scoring
    fails and `on_error` is "keep", the missing scores are None too, and metadata["rerank_scored"]
    of a copy is False.

    With `explain`, metadata["rerank_evidence"] of a copy, hidden from embedder and LLM, is the
    sentence of the node's own text (`get_content()`, without metadata) that answers best, and
    "rerank_evidence_start", "_end" and "_score" are its offsets and score; all None without one.

    Raises `InvalidInputError` (a `ValueError`), before any event, without a query and for an item
    that is not a `NodeWithScore`, and whatever loading and scoring raise.
    """

    top_n: TopN = 2
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata to put before a node's text for scoring; never the keys that this class
    writes."""
    keep_retrieval_score: bool = False
    """Write a node's original score to metadata['retrieval_score'] of a copy, hidden from embedder
    and LLM; an existing value is kept."""
    _bge_item: ClassVar[str] = "node"

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialized components."""
        return "BGERerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | str | None = None
    ) -> list[NodeWithScore]:
        return self._bge_reranked(nodes, query_bundle)

    @dispatcher.span  # LlamaIndex wraps implementations of abstract methods only
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | str | None = None
    ) -> list[NodeWithScore]:
        # The worker thread sends the events too: it has the caller's context, so they carry the
        # caller's span and tags, and slow handlers do not block the event loop.
        return await in_worker(self._bge_reranked, nodes, query_bundle)

    def _bge_reranked(
        self, nodes: Iterable[NodeWithScore], query_bundle: QueryBundle | str | None
    ) -> list[NodeWithScore]:
        query = _read_query(query_bundle)
        given = read_items(nodes, NodeWithScore, "node", _remedy)
        if not given:
            return []
        own_texts = [node_text(node, MetadataMode.NONE) for node in given]
        if is_blank(query.query_str):
            order = self.rank(query.query_str, own_texts, own_texts)
            return [self._bge_placed(given[index], result) for index, result in order]
        self.check_texts(
            own_texts, lambda index: f"the node at position {index} (id {given[index].node_id})"
        )

        top_n = len(given) if self.top_n is None else self.top_n
        model_name = self.model if self.scorer is None else self.scorer.name
        before = _snapshot(given)
        payload: dict[str, Any] = {
            EventPayload.NODES: before,
            EventPayload.MODEL_NAME: model_name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: top_n,
        }
        dispatcher.event(
            ReRankStartEvent(query=copy(query), nodes=before, top_n=top_n, model_name=model_name)
        )
        ranked: list[NodeWithScore] = []
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as callback:
                order = self.rank(
                    query.query_str,
                    [node_text(node, self.metadata_mode) for node in given],
                    own_texts,
                    on_trace=_send_trace if _events_are_handled() else None,
                    read_texts=[node_text(node, MetadataMode.LLM) for node in given]
                    if self.token_budget
                    else None,
                    ids=[node.node_id for node in given],
                    own_span=not _openinference_records_spans(),
                )
                ranked = [self._bge_placed(given[index], result) for index, result in order]
                callback.on_end(payload={EventPayload.NODES: _snapshot(ranked)})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=_snapshot(ranked)))
        return ranked

    def _bge_placed(self, given: NodeWithScore, result: RerankResult | None) -> NodeWithScore:
        notes: dict[str, Any] = {}
        if self.keep_retrieval_score:
            score = None if given.score is None else float(given.score)
            notes[RETRIEVAL_SCORE_KEY] = given.node.metadata.get(RETRIEVAL_SCORE_KEY, score)
        notes |= self.notes(result, given.node.metadata)
        return given.model_copy(
            update={
                "node": _with_notes(given.node, notes) if notes else given.node,
                "score": result.score if result is not None and result.scored else None,
            }
        )


class BGEEmbedding(EmbedderFields, BaseEmbedding):
    """Computes the unit vectors of a BGE embedder for an index and its queries.

    Use `get_text_embedding_batch(texts)`, `get_query_embedding(query)` or their async versions.
    A query gets the `query_instruction`, by default the model card's. Weights are loaded at first
    use and shared within the process; a pickle holds the settings only.

    Raises `UnsupportedModel` for a reranker, and what loading and scoring raise. Older versions of
    LlamaIndex write the settings into each event, and so do not work with a `scorer` object.
    """

    embed_batch_size: int = Field(default=256, gt=0, le=2048)
    """How many texts LlamaIndex passes at once; the engine makes its own batches of them."""
    # the model's name in LlamaIndex's events; the option is `model`
    model_name: str = Field(default="", validation_alias="model name", exclude=True, repr=False)

    @model_validator(mode="after")
    def _bge_set_model_name(self) -> Self:
        self.__dict__["model_name"] = self.model
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialized components."""
        return "BGEEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.embed([query], as_queries=True)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await in_worker(self.embed, [query], as_queries=True))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embed([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await in_worker(self.embed, [text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embed(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await in_worker(self.embed, texts)


def node_text(given: NodeWithScore, mode: MetadataMode) -> str:
    """The node's text with the metadata of this mode, without the keys that this module writes."""
    node = given.node
    # with our own keys, a second pass would score another text
    own = NOTE_KEYS | {RETRIEVAL_SCORE_KEY}
    if not own.isdisjoint(node.metadata):
        kept = {key: value for key, value in node.metadata.items() if key not in own}
        node = node.model_copy(update={"metadata": kept})
    return node.get_content(metadata_mode=mode)


def _read_query(query: QueryBundle | str | None) -> QueryBundle:
    text: Any = query
    while isinstance(text, QueryBundle):  # LlamaIndex wraps query_str=QueryBundle(...) once more
        query, text = text, text.query_str
    if not isinstance(text, str):
        raise InvalidInputError(
            f"the query is {type(text).__name__}; reranking orders nodes for a query: "
            "pass query_str='...' or query_bundle=QueryBundle('...')"
        )
    return query if isinstance(query, QueryBundle) else QueryBundle(text)


def _remedy(item: Any) -> str:
    if hasattr(item, "page_content"):
        return "convert it: NodeWithScore(node=Document.from_langchain_format(document))"
    return "wrap a bare node: NodeWithScore(node=node)"


def _with_notes(node: BaseNode, notes: dict[str, Any]) -> BaseNode:
    """A copy of the node with the notes in its metadata, hidden from embedder and LLM."""
    update: dict[str, Any] = {"metadata": {**node.metadata, **notes}}
    for field in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"):
        update[field] = list(dict.fromkeys([*getattr(node, field), *notes]))
    return node.model_copy(update=update)


def _snapshot(nodes: Iterable[NodeWithScore]) -> list[NodeWithScore]:
    """Copies for events, which outlive the call: later changes to the nodes do not reach them.

    One level deep: a list or dict inside the metadata is shared, because metadata may hold objects
    that cannot be copied.
    """
    copies = []
    for given in nodes:
        containers = {
            name: copy(value)
            for name, value in given.node
            if isinstance(value, dict | list | MediaResource)
        }
        node = given.node.model_copy(update=containers)
        copies.append(given.model_copy(update={"node": node}))
    return copies
