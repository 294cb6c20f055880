"""`HuggingFaceCrossEncoder` and `CrossEncoderReranker` of LangChain, on this engine.

The original of the first is in langchain-community, which is being sunset. It works wherever a
`BaseCrossEncoder` does, also in LangChain's own `CrossEncoderReranker`, which drops the scores; the
`CrossEncoderReranker` here keeps them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bge_rerank_integrations.drop_in.cross_encoder import cross_encoder_options
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.langchain import BGECrossEncoder, BGERerank
from bge_rerank_integrations.types import FloatArray, Pair, Scale

# isort: split
from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field, PrivateAttr, field_validator


class HuggingFaceCrossEncoder(BGECrossEncoder):
    """`langchain_community.cross_encoders.HuggingFaceCrossEncoder` on this engine.

    `model_kwargs` are sentence-transformers' `CrossEncoder` arguments; a token among them is used,
    but never part of a dump, repr or pickle. Scores are those of `CrossEncoder.predict`: a sigmoid,
    unless the model was saved with another activation. The model is loaded at construction. It is a
    `BGECrossEncoder` with the options that give these scores, and takes its other options too.

    Raises `ValueError` for an argument that is not supported, `UnsupportedModel` for a model
    that is not a cross-encoder with one label, and the errors of `load_scorer`.
    """

    def __init__(
        self,
        *,
        model_name: str = "BAAI/bge-reranker-base",
        model_kwargs: dict[str, Any] | None = None,
        client: None = None,
        **options: Any,
    ) -> None:
        if client is not None:
            raise InvalidInputError(
                f"client is a {type(client).__name__}; the original overwrites it with a model "
                "made from model_name and model_kwargs: leave it out, or use "
                "BGECrossEncoder(scorer=...) for a scorer of your own"
            )
        model = options.pop("model", model_name)  # a copy is made from the fields
        super().__init__(
            **cross_encoder_options(model, model_kwargs or {}, options, where="model_kwargs")
        )
        self.warm_up()

    @property
    def model_name(self) -> str:
        """The original's name for `model`."""
        return self.model


class CrossEncoderReranker(BaseDocumentCompressor):
    """`langchain_classic`'s `CrossEncoderReranker`, which keeps the scores.

    `model` is any `BaseCrossEncoder`. It returns copies of the `top_n` best documents, with the
    model's score as metadata["relevance_score"], and otherwise behaves as `BGERerank`: errors for
    inputs that are not documents and scores that are not numbers, a run under `callbacks`, async.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True
    )

    model: Any = Field(description="A BaseCrossEncoder, or any object with its score(pairs).")
    top_n: int = Field(default=3, ge=1, description="How many to keep.")

    _rerank: BGERerank = PrivateAttr(default_factory=BGERerank)

    @field_validator("model")
    @classmethod
    def _scores_pairs(cls, model: Any) -> Any:
        if not callable(getattr(model, "score", None)):
            raise InvalidInputError(
                f"model is a {type(model).__name__} without score(pairs); give a cross-encoder, "
                "such as HuggingFaceCrossEncoder(model_name=...)"
            )
        return model

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents with their scores, best first; see `BGERerank`."""
        return self._compressor().compress_documents(documents, query, callbacks)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` on a worker thread."""
        return await self._compressor().acompress_documents(documents, query, callbacks)

    def _compressor(self) -> BGERerank:
        update = {"scorer": _EncoderScores(self.model), "normalize": False, "top_n": self.top_n}
        if isinstance(self.model, BGECrossEncoder):  # by raw scores: sigmoids make ties
            update |= {"scorer": self.model.loaded_scorer(), "normalize": self.model.normalize}
        return self._rerank.model_copy(update=update)


class _EncoderScores:
    """Any `BaseCrossEncoder` as a scorer whose scores are shown as they are."""

    scale: Scale = "logit"

    def __init__(self, encoder: BaseCrossEncoder) -> None:
        self.name = type(encoder).__name__
        self._encoder = encoder

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.asarray(list(self._encoder.score(list(pairs))), dtype=np.float32)
