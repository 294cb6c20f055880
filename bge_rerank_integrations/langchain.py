"""BGE rerankers in LangChain: a document compressor and a cross-encoder.

`BGERerank` goes wherever a compressor does (`ContextualCompressionRetriever`,
`DocumentCompressorPipeline`), and into LCEL chains through `as_runnable()`; `BGECrossEncoder` is
the model of a `CrossEncoderReranker`. Documents are never changed: results are copies.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from bge_rerank_integrations.base.contract import check_text, read_pairs
from bge_rerank_integrations.base.deadline import in_worker
from bge_rerank_integrations.base.raw_scores import checked_scores, show_score
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import (
    InvalidInputError,
    MissingExtra,
)
from bge_rerank_integrations.ranking.rerank_options import check_top_n
from bge_rerank_integrations.types import Pair, RerankResult

try:
    from langchain_core.callbacks import Callbacks, dispatch_custom_event
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import Runnable, RunnableLambda
except ModuleNotFoundError as error:
    raise MissingExtra(str(error.name), "langchain") from error

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.adapter_fields import (
    EVIDENCE_KEY,
    RAW_SCORE_KEY,
    SCORED_KEY,
    RerankFields,
    evidence_note,
)
from bge_rerank_integrations.langchain_cross_encoder import BaseCrossEncoder
from bge_rerank_integrations.langchain_input import (
    RerankInput,
    items,
    nothing_to_score,
    read_request,
    to_document,
)

__all__ = ["TRACE_EVENT", "BGECrossEncoder", "BGERerank", "BaseCrossEncoder", "RerankInput"]

logger = logging.getLogger(__name__)


TRACE_EVENT = "bge_rerank_trace"
"""Name of the custom event with `RerankTrace.as_dict()`, which holds no texts."""


class BGERerank(RerankFields, BaseDocumentCompressor):
    """Keeps the documents that answer a query best, best first.

    Each document that comes back is a copy whose metadata holds its score under `score_key`: a
    sigmoid in (0, 1), or the raw logit with `normalize=False`. Everything else of it (id, class,
    other metadata) is the caller's. The order is always that of the raw scores; equal ones keep
    the caller's order.

    The score is None for a document that was not scored: one without text, which comes last, or is
    dropped when there is a `score_threshold`; and every document when the query is blank, which
    gives the first `top_n` in the caller's order. Both are logged. Where `on_error="keep"` stood in
    for a score, it is None too, and metadata["rerank_scored"] is False.

    With `explain` metadata["rerank_evidence"] says which sentence of the `page_content` answers
    best: {"start", "end", "score"}, or None where there is none.
    """

    top_n: int | None = Field(default=3, ge=1, description="How many to keep; None keeps all.")
    metadata_keys: list[str] = Field(
        default=[],
        description="Metadata to score with the text: a line 'key: value' for each key that the "
        "document has, an empty line, the text.",
    )
    document_formatter: SkipJsonSchema[Callable[[Document], str] | None] = Field(
        default=None,
        exclude=True,
        description="Gives the text to score, instead of `metadata_keys`; called on the worker "
        "thread in async use. Cannot be serialized.",
    )
    score_key: str = Field(
        default="relevance_score", min_length=1, description="Metadata key of the score."
    )
    include_logit: bool = Field(
        default=False,
        description="Also write the raw score, of a cross-encoder its logit, to "
        "metadata['rerank_raw_score'].",
    )

    _told_of_no_text: bool = PrivateAttr(default=False)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents with their scores, best first.

        The work is a run of its own, "BGERerank", under `callbacks`, or under the run that this is
        called in. Nothing runs, and no model is loaded, without documents or with a blank query.

        Raises `InvalidInputError` (a ValueError) before the run starts for a query that is not
        text and for anything but a document, naming its position; and whatever the scorer raises.
        """
        request = read_request({"documents": documents, "query": query})
        if nothing_to_score(request):
            return self._compress(request)
        return self.as_runnable().invoke(request, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` on a worker thread; cancelling the task stops it between batches."""
        request = read_request({"documents": documents, "query": query})
        if nothing_to_score(request):
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
        are those of `compress_documents`; there is no run. With `explain` "rerank_evidence" is
        there too.
        """
        limit = self.top_n if top_n == -1 else check_top_n(top_n)
        request = read_request(
            {
                "documents": [to_document(item, i) for i, item in enumerate(items(documents))],
                "query": query,
            }
        )
        return [
            {
                "index": index,
                "relevance_score": result.score if result is not None and result.scored else None,
                **({EVIDENCE_KEY: evidence_note(result)} if self.explain else {}),
            }
            for index, result in self._rank(request, limit)
        ]

    def as_runnable(self) -> Runnable[Any, list[Document]]:
        """A step of a chain that does what this does, from `{"documents", "query"}` to documents.

        After a retriever: `{"documents": retriever, "query": RunnablePassthrough()} | step`.
        Invalid input raises inside the step's run.
        """
        return RunnableLambda(self._compress, self._acompress, name="BGERerank")

    def _compress(self, request: RerankInput) -> list[Document]:
        request = read_request(request)
        documents = request["documents"]
        ranking = self._rank(request, self.top_n, _send_trace)
        return [self._with_score(documents[index], result) for index, result in ranking]

    async def _acompress(self, request: RerankInput) -> list[Document]:
        return await in_worker(self._compress, request)

    def _rank(
        self,
        request: RerankInput,
        limit: int | None,
        on_trace: Callable[[RerankTrace], object] | None = None,
    ) -> list[tuple[int, RerankResult | None]]:
        """Positions in their new order, each with its result, or None where nothing was scored."""
        documents, query = request["documents"], request["query"]
        ranking: list[tuple[int, RerankResult | None]] = []
        if nothing_to_score(request):
            if documents:
                logger.warning(
                    "The query is blank: %d documents keep their order, unscored.", len(documents)
                )
            ranking += [(index, None) for index in range(len(documents))]
            return ranking[:limit]
        texts = {index: self._text(document, index) for index, document in enumerate(documents)}
        scored = [index for index, text in texts.items() if text.strip()]
        if scored:
            passages = [texts[index] for index in scored]
            results = self.reranker(on_trace).rerank(
                query,
                passages,
                top_n=limit or len(passages),
                evidence_texts=[documents[index].page_content for index in scored],
            )
            ranking = [(scored[result.index], result) for result in results]
        textless = [index for index, text in texts.items() if not text.strip()]
        if textless and not self._told_of_no_text:
            self._told_of_no_text = True
            logger.warning(
                "%d of %d documents have no text and are not scored: they come last, with the "
                "score None, or not at all under a score_threshold. This is said once.",
                len(textless),
                len(documents),
            )
        if self.score_threshold is None:
            ranking += [(index, None) for index in textless]
        return ranking[:limit]

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
        shown = result if result is not None and result.scored else None
        scores: dict[str, Any] = {self.score_key: None if shown is None else shown.score}
        if self.include_logit:
            scores[RAW_SCORE_KEY] = None if shown is None else shown.raw_score
        if result is not None and (not result.scored or SCORED_KEY in document.metadata):
            scores[SCORED_KEY] = result.scored
        if self.explain:
            scores[EVIDENCE_KEY] = evidence_note(result)
        return document.model_copy(update={"metadata": {**document.metadata, **scores}})

    @model_validator(mode="after")
    def _text_is_settled(self) -> Self:
        if self.document_formatter is not None and self.metadata_keys:
            raise ValueError(
                "give metadata_keys or document_formatter, not both: the formatter has the metadata"
            )
        written = {self.score_key, RAW_SCORE_KEY, SCORED_KEY, EVIDENCE_KEY}.intersection(
            self.metadata_keys
        )
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


class BGECrossEncoder(ScorerFields, BaseCrossEncoder):
    """A BGE reranker as the `model` of a `CrossEncoderReranker`, or wherever pairs are scored.

    Scores are sigmoids in (0, 1), as `HuggingFaceCrossEncoder` gives for a model of one label;
    `normalize=False` gives the raw logits.
    """

    normalize: bool = Field(default=True, description="Return a logit as its sigmoid.")

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
