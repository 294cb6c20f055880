"""`FlagEmbeddingReranker` and `SentenceTransformerRerank` of LlamaIndex, on this engine.

Each takes its original's arguments and gives its scores and order, by a `BGERerank` inside: new
nodes over untouched ones, Python floats, events, async off the loop, one copy of the weights. The
model is loaded at construction, and arguments that affect a score are fixed from then on.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from bge_rerank_integrations.drop_in.cross_encoder import adapter_fields, read_arguments
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.llama_index import BGERerank

# isort: split
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher
from pydantic import Field, PrivateAttr

DEFAULT_MAX_LENGTH = 512
"""LlamaIndex's, for `SentenceTransformerRerank`."""

dispatcher = get_dispatcher(__name__)


class _Reranks(BaseNodePostprocessor):
    """Nodes and pickles of both classes; each makes `_reranker` from its arguments."""

    _changeable: ClassVar[tuple[str, ...]] = ("top_n", "callback_manager")
    _reranker: BGERerank = PrivateAttr()

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._present().postprocess_nodes(nodes, query_bundle)

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await self._present().apostprocess_nodes(nodes, query_bundle)

    def _present(self) -> BGERerank:
        # One object while nothing changes, because it logs each warning once.
        update = {name: getattr(self, name) for name in self._changeable}
        if any(getattr(self._reranker, name) != value for name, value in update.items()):
            self._reranker = self._reranker.model_copy(update=update)
        return self._reranker

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Self], tuple[dict[str, Any]]]:
        return type(self).from_dict, (self.to_dict(),)


class FlagEmbeddingReranker(_Reranks):
    """`llama_index.postprocessor.flag_embedding_reranker.FlagEmbeddingReranker` on this engine.

    Scores are raw logits, by FlagEmbedding's rule for long texts; `use_fp16` is fp16 where the
    device computes it and float32 on a CPU. The score that a node came with, which the original
    loses, is in metadata["retrieval_score"] of a copy, out of sight of embedder and LLM. The LLM
    rerankers are scored as such. Raises the errors of `BGERerank`.
    """

    model: str = Field(frozen=True, description="A hub id or a local folder.")
    top_n: int = Field(ge=1, description="How many to keep.")
    use_fp16: bool = Field(frozen=True, description="Compute in fp16 where that is native.")

    def __init__(
        self,
        top_n: int = 2,
        model: str = "BAAI/bge-reranker-large",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the original's signature
    ) -> None:
        fields: dict[str, Any] = {"top_n": top_n, "model": model, "use_fp16": use_fp16}
        super().__init__(**fields)
        self._reranker = BGERerank(
            model=model,
            use_fp16=use_fp16,
            normalize=False,
            keep_retrieval_score=True,
        ).warm_up()

    @classmethod
    def class_name(cls) -> str:
        """The original's name, for its serialized components."""
        return "FlagEmbeddingReranker"


class SentenceTransformerRerank(_Reranks):
    """LlamaIndex's `SentenceTransformerRerank` on this engine.

    It takes the arguments of both classes of that name, the one in llama-index-core and the one in
    llama-index-postprocessor-sbert-rerank, by name.

    Scores are those of `CrossEncoder.predict`: a sigmoid, unless the model was saved with another
    activation. With `keep_retrieval_score` the score that a node came with is in
    metadata["retrieval_score"] of a copy, out of sight of embedder and LLM. `cross_encoder_kwargs`
    are `CrossEncoder`'s arguments. No code from a model is run, also with `trust_remote_code`.

    Raises `InvalidInputError` for an argument that cannot be honoured, `UnsupportedModel` for a
    model that is no cross-encoder of one label, and the errors of `BGERerank`.
    """

    _changeable = ("top_n", "keep_retrieval_score", "callback_manager")

    model: str = Field(frozen=True, description="A hub id or a local folder.")
    top_n: int = Field(ge=1, description="How many to keep.")
    device: str | None = Field(frozen=True, description="'cpu', 'cuda', ...; None chooses.")
    cache_folder: str | None = Field(frozen=True, description="Where downloads are kept.")
    keep_retrieval_score: bool = Field(description="Keep the score a node came with in metadata.")
    trust_remote_code: bool = Field(frozen=True, description="Has no effect: no code is run.")
    cross_encoder_kwargs: dict[str, Any] = Field(
        frozen=True, description="Further arguments of CrossEncoder, without a token."
    )

    def __init__(
        self,
        *positional: object,
        model: str = "cross-encoder/stsb-distilroberta-base",
        top_n: int = 2,
        device: str | None = None,
        cache_folder: str | Path | None = None,
        keep_retrieval_score: bool | None = False,
        trust_remote_code: bool = True,
        cross_encoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if positional:
            raise InvalidInputError(
                "SentenceTransformerRerank takes its arguments by name: LlamaIndex has two classes "
                "of this name, which order them differently; write model=..., top_n=..."
            )
        given = dict(cross_encoder_kwargs or {})
        for name in ("model", "device"):
            if name in given:
                raise InvalidInputError(f"cross_encoder_kwargs holds {name!r}; give {name}=...")
        arguments = read_arguments(given, where="cross_encoder_kwargs")
        folder = None if cache_folder is None else str(cache_folder)
        fields: dict[str, Any] = {
            "model": model,
            "top_n": top_n,
            "device": device,
            "cache_folder": folder,
            "keep_retrieval_score": bool(keep_retrieval_score),
            "trust_remote_code": trust_remote_code,
            "cross_encoder_kwargs": arguments.written,
        }
        super().__init__(**fields)
        own = {"device": device} if folder is None else {"device": device, "cache_dir": folder}
        given_fields = replace(arguments, fields=arguments.fields | own)
        self._reranker = BGERerank(
            **adapter_fields(model, given_fields, default_max_length=DEFAULT_MAX_LENGTH)
        ).warm_up()

    @classmethod
    def class_name(cls) -> str:
        """The original's name, for its serialized components."""
        return "SentenceTransformerRerank"
