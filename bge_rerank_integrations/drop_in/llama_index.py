"""`FlagEmbeddingReranker` and `SentenceTransformerRerank` of LlamaIndex, on this engine.

Each is a `BGERerank` with the options that give its original's scores and order. It takes the
original's arguments, and the other options of `BGERerank` by name. The model is loaded at
construction and cannot be exchanged afterwards.
"""

from pathlib import Path
from typing import Annotated, Any

from bge_rerank_integrations.drop_in.cross_encoder import cross_encoder_options
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.llama_index import BGERerank
from bge_rerank_integrations.options import ModelName

# isort: split
from pydantic import Field


class FlagEmbeddingReranker(BGERerank):
    """`llama_index.postprocessor.flag_embedding_reranker.FlagEmbeddingReranker` on this engine.

    Scores are raw logits, by FlagEmbedding's rule for long texts. `use_fp16` is fp16 where the
    device computes it and float32 on a CPU; `precision` names any other format. A node's retrieval
    score, which the original class loses, is in metadata["retrieval_score"] of a copy, hidden from
    embedder and LLM. LLM rerankers are scored with their own prompt and head. Raises the errors of
    `BGERerank`.
    """

    model: Annotated[ModelName, Field(frozen=True)] = "BAAI/bge-reranker-large"

    def __init__(
        self,
        top_n: int = 2,
        model: str = "BAAI/bge-reranker-large",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the original's signature
        **options: Any,
    ) -> None:
        own = {
            "normalize": False,
            "keep_retrieval_score": True,
            "precision": "fp16" if use_fp16 else "fp32",
        }
        if use_fp16 and options.get("precision", "fp16") != "fp16":
            raise InvalidInputError(
                f"use_fp16=True contradicts precision={options['precision']!r}: leave one out"
            )
        super().__init__(top_n=top_n, model=model, **{**own, **options})
        self.warm_up()

    @classmethod
    def class_name(cls) -> str:
        """The original's name, for its serialized components."""
        return "FlagEmbeddingReranker"


class SentenceTransformerRerank(BGERerank):
    """LlamaIndex's `SentenceTransformerRerank` on this engine.

    It takes the arguments of both classes of that name, the one in llama-index-core and the one in
    llama-index-postprocessor-sbert-rerank, by name.

    Scores are those of `CrossEncoder.predict`: a sigmoid, unless the model was saved with another
    activation. With `keep_retrieval_score` a node's retrieval score is in
    metadata["retrieval_score"] of a copy, hidden from embedder and LLM. `cross_encoder_kwargs` are
    `CrossEncoder`'s arguments. No code from a model is run, even with `trust_remote_code`.

    Raises `InvalidInputError` for an argument that is not supported, `UnsupportedModel` for a
    model that is not a cross-encoder with one label, and the errors of `BGERerank`.
    """

    model: Annotated[ModelName, Field(frozen=True)] = "cross-encoder/stsb-distilroberta-base"

    def __init__(
        self,
        *positional: object,
        model: str = "cross-encoder/stsb-distilroberta-base",
        device: str | None = None,
        cache_folder: str | Path | None = None,
        keep_retrieval_score: bool | None = False,
        trust_remote_code: bool = True,
        cross_encoder_kwargs: dict[str, Any] | None = None,
        **options: Any,
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
        given |= {"device": device, "trust_remote_code": trust_remote_code}
        if cache_folder is not None:
            given["cache_folder"] = cache_folder
        super().__init__(
            **cross_encoder_options(
                model,
                given,
                {**options, "keep_retrieval_score": bool(keep_retrieval_score)},
                where="SentenceTransformerRerank",
                default_max_length=512,  # LlamaIndex's
            )
        )
        self.warm_up()

    @classmethod
    def class_name(cls) -> str:
        """The original's name, for its serialized components."""
        return "SentenceTransformerRerank"
