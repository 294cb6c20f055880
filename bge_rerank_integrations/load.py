"""Names to objects: a scorer of a model here or on a server, and a reranker over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from bge_rerank_integrations.base.address import is_address
from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.local.decoder_spec import LayerRequest
from bge_rerank_integrations.local.download import HubOptions
from bge_rerank_integrations.local.load import load_local_scorer
from bge_rerank_integrations.local.load_request import BatchLimits, LoadRequest, TextRequest
from bge_rerank_integrations.option_checks import listed
from bge_rerank_integrations.options import (
    LocalOptions,
    ModelOptions,
    RemoteOptions,
    ScorerOptions,
    read_model,
    refuse_strangers,
    with_options_of,
)
from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.ranking.cutoffs import Cutoff
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import (
    Backend,
    HeadIndexing,
    LongPassages,
    OnError,
    Precision,
    SpecialTokens,
    Truncation,
)
from bge_rerank_integrations.wrapped import wrapped_scorer

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer
    from bge_rerank_integrations.remote.scorer import RemoteScorer


@overload
def load_scorer(
    model: str | Path = ...,
    *,
    base_url: str,
    batch_size: int | None = None,
    **options: Unpack[RemoteOptions],
) -> RemoteScorer: ...


# A name may be an address, which no type can tell; these four cannot be one.
@overload
def load_scorer(*, base_url: None = None, **options: Unpack[LocalOptions]) -> LocalScorer: ...


@overload
def load_scorer(
    model: Literal["offline", "offline-embedder"],
    *,
    base_url: None = None,
    **options: Unpack[LocalOptions],
) -> LocalScorer: ...


@overload
def load_scorer(
    model: str | Path = ...,
    *,
    device: str | Sequence[str],
    backend: Backend = ...,
    base_url: None = None,
    **options: Unpack[ModelOptions],
) -> LocalScorer: ...


@overload
def load_scorer(
    model: str | Path = ...,
    *,
    backend: Literal["torch", "onnx", "openvino"],
    device: str | Sequence[str] | None = ...,
    base_url: None = None,
    **options: Unpack[ModelOptions],
) -> LocalScorer: ...


@overload
def load_scorer(
    model: str | Path = ..., **options: Unpack[ScorerOptions]
) -> LocalScorer | RemoteScorer: ...


def load_scorer(
    model: str | Path = DEFAULT_MODEL,
    *,
    backend: Backend = "auto",
    device: str | Sequence[str] | None = None,
    precision: Precision = "auto",
    max_length: int | None = None,
    query_max_length: int | None = None,
    query_instruction: str | None = None,
    passage_instruction: str | None = None,
    special_tokens: SpecialTokens = "literal",
    prompt: str | None = None,
    truncation: Truncation = "only_second",
    label: int | str | None = None,
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
    file_name: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    dialect: str = "auto",
    deployment: str | None = None,
    connect_timeout: float = 5.0,
    read_timeout: float = 30.0,
    request_timeout: float = 60.0,
    max_retries: int = 3,
    max_concurrency: int = 8,
) -> LocalScorer | RemoteScorer:
    """Load a model and return its scorer; one copy of the weights serves the whole process.

    `model` is a hub id, a local folder (a `Path` always is), `"offline"` (an embedded
    cross-encoder) or `"offline-embedder"` (an embedded BGE bi-encoder). Rerankers give logits,
    embedders cosines: see `Scorer.scale`.

    `backend` is `"torch"`, or `"onnx"` (ONNX Runtime) or `"openvino"`, which run an encoder's graph
    on the CPU: one that its authors publish as `onnx/model.onnx` or `openvino/openvino_model.xml`,
    or that `export.export_onnx` wrote; `file_name` chooses another of the folder, such as
    `"onnx/model_O3.onnx"`. By default it is torch where that is installed, else ONNX Runtime.

    `device` is `"cpu"`, `"cuda"`, `"cuda:1"`, `"xpu"` or `"mps"`, or a list of devices, which share
    the batches of each call and must compute in one number format. `precision` is the number
    format of the forward pass; by default both are chosen, and `scorer.plan` says why.
    `max_length` (by default 512, or what the model's folder says where sentence-transformers saved
    it, and never more than the model takes) and `query_max_length` (three
    quarters of it) count tokens; longer texts are cut by FlagEmbedding's rule, or with
    `truncation="longest_first"`, of a cross-encoder, by sentence-transformers'. The instructions
    are put before each text. `special_tokens` says what `</s>` in a text is: `"literal"` text, an
    `"error"`, or parsed as FlagEmbedding does.

    The LLM rerankers take a `prompt` and instructions in place of their own ("A: " and "B: "). The
    layerwise and lightweight ones score at `cutoff_layers` (by default the last; `score` gives the
    deepest, `score_layers` all), and compute no layer beyond. The lightweight one can average
    `compress_ratio` passage tokens into one before each of the `compress_layers`; its heads follow
    the `"request"`, as in FlagEmbedding, or the `"layer"`.

    Batches are filled to `max_batch_tokens`; `batch_size` caps their
    pairs. `revision`, `cache_dir`, `local_files_only` and `token` go to the hub's client.

    With a `base_url` the model runs on that server, which is asked for `model`, the default one
    too; with an address as the `model` none is asked for. `dialect`, `api_key`, `deployment`, the
    three timeouts in seconds, `max_retries` and `max_concurrency` are for servers, where
    `batch_size` is the most passages in a request: see `remote.scorer.RemoteScorer`, which then
    comes back. Of the options above a server takes no other.

    Raises `MissingExtra`, `ModelNotFound`, `UnsupportedModel` for a model that is no reranker,
    `CheckpointError` for damaged or pickled weights, and `InvalidInputError` for an option out of
    range.
    """
    model = read_model(model)
    refuse_strangers(locals(), load_scorer.__kwdefaults__ or {})
    if base_url is not None or is_address(model):
        from bge_rerank_integrations.remote.scorer import RemoteScorer

        return RemoteScorer(
            model if base_url is None else base_url,
            model=None if base_url is None else model,
            api_key=api_key,
            dialect=dialect,
            deployment=deployment,
            batch_size=batch_size,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            request_timeout=request_timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
        )
    request = LoadRequest(
        text=TextRequest(
            max_length,
            query_max_length,
            query_instruction,
            passage_instruction,
            special_tokens,
            prompt,
            truncation,
            label,
        ),
        layers=LayerRequest(
            None if cutoff_layers is None else listed(cutoff_layers, "cutoff_layers"),
            compress_ratio,
            listed(compress_layers, "compress_layers"),
            head_indexing,
        ),
        limits=BatchLimits(max_batch_tokens, batch_size),
        device=_one_or_several(device),
        precision=precision,
        show_progress=show_progress,
        file_name=file_name,
    )
    hub = HubOptions(revision, cache_dir, local_files_only, token)
    return load_local_scorer(model, request, hub, backend)


def _one_or_several(device: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    if device is None or isinstance(device, str):
        return device
    if not isinstance(device, Sequence) or not all(isinstance(name, str) for name in device):
        raise InvalidInputError(
            f"device is {device!r}; it must be a name, such as 'cuda:0', or a list of names"
        )
    return device[0] if len(device) == 1 else tuple(device)


def load_reranker(
    model: str | Path = DEFAULT_MODEL,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    normalize: bool = True,
    timeout: float | None = None,
    on_error: OnError = "raise",
    calibration: Calibration | str | Path | None = None,
    cutoff: Cutoff | None = None,
    explain: bool = False,
    on_trace: Callable[[RerankTrace], object] | None = None,
    trace_texts: bool = False,
    long_passages: LongPassages = "cut",
    score_cache: str | None = None,
    **options: Unpack[ScorerOptions],
) -> Reranker:
    """Load a model and return a reranker over it; the options are those of `load_scorer`.

    A passage that is longer than the model reads is cut, or with `long_passages="windows"` read in
    overlapping windows of which the best counts (see `windows.WindowedScorer`), or an `"error"`.
    `score_cache`, a file's path or ":memory:", keeps scores (see `cache.CachedScorer`).

    See `Reranker` for `top_n`, `score_threshold` (inclusive, on the scale that is shown),
    `normalize`, `timeout`, `on_error`, `calibration`, `cutoff`, `explain`, `on_trace` and
    `trace_texts`.
    """
    model = read_model(model)
    return Reranker(
        wrapped_scorer(
            load_scorer(model, **options),
            model=model,
            long_passages=long_passages,
            score_cache=score_cache,
        ),
        top_n=top_n,
        score_threshold=score_threshold,
        normalize=normalize,
        timeout=timeout,
        on_error=on_error,
        calibration=calibration,
        cutoff=cutoff,
        explain=explain,
        on_trace=on_trace,
        trace_texts=trace_texts,
    )


# for notebooks, which complete what the signature names; type checkers read the TypedDict
load_reranker.__signature__ = with_options_of(  # type: ignore[attr-defined]
    load_scorer, load_reranker
)
