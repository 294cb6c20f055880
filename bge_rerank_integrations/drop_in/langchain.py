"""`HuggingFaceCrossEncoder` and `CrossEncoderReranker` of LangChain, on this engine.

The original of the first is in langchain-community, which is being sunset. It works wherever a
`BaseCrossEncoder` does, also in LangChain's own `CrossEncoderReranker`, which drops the scores; the
`CrossEncoderReranker` here keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from bge_rerank_integrations.drop_in.cross_encoder import adapter_fields, read_arguments
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.langchain import BaseCrossEncoder, BGECrossEncoder, BGERerank
from bge_rerank_integrations.types import FloatArray, Pair, Scale, Scorer

# isort: split
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator


class HuggingFaceCrossEncoder(BaseModel, BaseCrossEncoder):
    """`langchain_community.cross_encoders.HuggingFaceCrossEncoder` on this engine.

    `model_kwargs` are sentence-transformers' `CrossEncoder` arguments; a token among them is used
    and then in no dump, repr or pickle. Scores are those of `CrossEncoder.predict`: a sigmoid,
    unless the model was saved with another activation.

    Raises `ValueError` for an argument that cannot be honoured, `UnsupportedModel` for a model
    that is no cross-encoder of one label, and the errors of `load_scorer`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    model_name: str = Field(
        default="BAAI/bge-reranker-base", frozen=True, description="A hub id or a local folder."
    )
    model_kwargs: dict[str, Any] = Field(
        default={}, frozen=True, description="Arguments of CrossEncoder, without a token."
    )
    _encoder: BGECrossEncoder = PrivateAttr()

    def __init__(
        self,
        *,
        model_name: str = "BAAI/bge-reranker-base",
        model_kwargs: dict[str, Any] | None = None,
        client: None = None,
    ) -> None:
        if client is not None:
            raise InvalidInputError(
                f"client is a {type(client).__name__}; the original overwrites it with a model "
                "made from model_name and model_kwargs: leave it out, or use "
                "BGECrossEncoder(scorer=...) for a scorer of your own"
            )
        arguments = read_arguments(model_kwargs or {}, where="model_kwargs")
        super().__init__(model_name=model_name, model_kwargs=arguments.written)
        self._encoder = BGECrossEncoder(**adapter_fields(model_name, arguments)).warm_up()

    @property
    def encoder(self) -> BGECrossEncoder:
        """The class of this package that scores."""
        return self._encoder

    def score(self, text_pairs: Sequence[Pair]) -> list[float]:
        """Return one Python float per (query, passage) pair, in the same order.

        Raises `InvalidInputError` with the position of anything but a pair of texts.
        """
        return self._encoder.score(text_pairs)

    def __reduce__(
        self,
    ) -> tuple[Callable[[str, dict[str, Any]], HuggingFaceCrossEncoder], tuple[str, Any]]:
        return _rebuild, (self.model_name, self.model_kwargs)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()  # the weights are shared by design

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceCrossEncoder) and (
            (self.model_name, self.model_kwargs) == (other.model_name, other.model_kwargs)
        )


def _rebuild(model_name: str, model_kwargs: dict[str, Any]) -> HuggingFaceCrossEncoder:
    return HuggingFaceCrossEncoder(model_name=model_name, model_kwargs=model_kwargs)


class _LastCompressor:
    """The compressor of the last call, kept because it logs each warning once.

    It is in no copy or pickle, and does not affect whether two rerankers are equal.
    """

    def __init__(self) -> None:
        self._made = BGERerank()

    def over(self, scorer: Scorer, *, normalize: bool, top_n: int) -> BGERerank:
        wanted = {"scorer": scorer, "normalize": normalize, "top_n": top_n}
        made = self._made
        if any(getattr(made, name) != value for name, value in wanted.items()):
            made = self._made = made.model_copy(update=wanted)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LastCompressor)

    def __reduce__(self) -> tuple[type[_LastCompressor], tuple[()]]:
        return _LastCompressor, ()


class CrossEncoderReranker(BaseDocumentCompressor):
    """`langchain_classic`'s `CrossEncoderReranker`, which keeps the scores.

    `model` is any `BaseCrossEncoder`. It returns copies of the `top_n` best documents, with the
    model's score as metadata["relevance_score"], and otherwise behaves as `BGERerank`: errors for
    inputs that are not documents and scores that are not numbers, a run under `callbacks`, async.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True
    )

    # not BaseCrossEncoder, of which there are two before langchain-core 1.2.19
    model: Any = Field(description="A BaseCrossEncoder, or any object with its score(pairs).")
    top_n: int = Field(default=3, ge=1, description="How many to keep.")

    _last: _LastCompressor = PrivateAttr(default_factory=_LastCompressor)

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
        model = (
            self.model.encoder if isinstance(self.model, HuggingFaceCrossEncoder) else self.model
        )
        if isinstance(model, BGECrossEncoder):  # by raw scores: sigmoids make ties
            scorer = model.loaded_scorer()
            return self._last.over(scorer, normalize=model.normalize, top_n=self.top_n)
        return self._last.over(_EncoderScores(model), normalize=False, top_n=self.top_n)


class _EncoderScores:
    """Any `BaseCrossEncoder` as a scorer whose scores are shown as they are."""

    scale: Scale = "logit"

    def __init__(self, encoder: BaseCrossEncoder) -> None:
        self.name = type(encoder).__name__
        self._encoder = encoder

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.asarray(list(self._encoder.score(list(pairs))), dtype=np.float32)
