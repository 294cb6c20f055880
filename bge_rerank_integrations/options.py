"""Every option, declared once: its name, type, default, bounds and one line of help.

Groups of options are composed by inheritance, so an adapter that inherits from them has flat
fields, a function takes the same keywords (`write_out`), a command gets its flags from them, and a
callee takes the group that it needs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bge_rerank_integrations.base.address import is_address, may_be_tag, read_address
from bge_rerank_integrations.base.option_group import (
    Count,
    Devices,
    Label,
    Layers,
    Options,
    Place,
    RealNumber,
    Seconds,
    Secret,
    Share,
    Text,
    Whole,
)
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.types import (
    Backend,
    CudaAttention,
    HeadIndexing,
    LongPassages,
    OnError,
    Precision,
    SpecialTokens,
    Truncation,
)


def _address(given: str) -> str:
    read_address(given)  # raises for one that holds a password, which dumps and logs would show
    return given


def _model(given: str) -> str:
    # `name:567` is a model if there is a base_url; without one, loading refuses it
    return _address(given) if is_address(given) and not may_be_tag(given) else given


class EncodingOptions(Options):
    """How texts become tokens; None leaves it to the model."""

    max_length: Count = None
    """Most tokens of a pair, None: 512, or less if the model's own; of an embedder's text."""
    query_max_length: Count = None
    """Most tokens of a query; None: three quarters of max_length, all of it for an embedder."""
    query_instruction: Text | None = None
    """Text put before each query."""
    passage_instruction: Text | None = None
    """Text put before each passage."""
    special_tokens: SpecialTokens = "literal"
    """A control token such as </s> in a text: plain text, an error, or read."""


class PairOptions(EncodingOptions):
    """How a pair becomes tokens; None leaves it to the model."""

    truncation: Truncation | None = None
    """Cut the passage, or the longer text; None: the longer if sentence-transformers saved it."""
    label: Label | None = None
    """Which label of a classifier of several means relevant."""
    prompt: Text | None = None
    """An LLM reranker's question."""


class LayerOptions(Options):
    """Which layers of an LLM reranker give scores, and how passages are compressed on the way.

    `head_indexing="request"` gives the i-th requested layer of the lightweight model head i, as
    the reference does; `"layer"` gives each layer its own.
    """

    cutoff_layers: Layers | None = None
    """Layers that score, of an LLM reranker that has several; None: the last."""
    compress_ratio: Annotated[Whole, Field(ge=1)] = 1
    """Passage tokens averaged into one, by a lightweight model."""
    compress_layers: Layers = ()
    """Layers before which a lightweight model compresses passages."""
    head_indexing: HeadIndexing = "request"
    """A lightweight model's head for a layer: by place or own."""


class BatchOptions(Options):
    """How much is computed at once; None leaves it to the device's plan."""

    batch_size: Count = None
    """Most pairs in a batch, or passages in a request to a server."""
    max_batch_tokens: Count = None
    """Most tokens in a batch; None: chosen by device."""
    show_progress: bool = False
    """A progress bar over the batches."""


class DeviceOptions(Options):
    """Where a model runs, and in which number format."""

    backend: Backend = "auto"
    """torch, or an encoder's ONNX graph on onnx or openvino."""
    file_name: str | None = None
    """Graph of the model's folder, such as onnx/model_O3.onnx."""
    device: Devices | None = None
    """cpu, cuda, cuda:1, xpu or mps, or several that share each call."""
    precision: Precision = "auto"
    """Number format of the forward pass; scores are float32."""
    attention: CudaAttention | None = None
    """Attention on CUDA; None: padded. No GPU has run the others."""
    keep_alive: Annotated[RealNumber, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds a model stays loaded after its last scorer or adapter is gone; 0: none."""
    use_fp16: bool | None = None
    """FlagEmbedding's name: True is precision='fp16', False 'fp32'."""

    @model_validator(mode="after")
    def _bge_check_precision(self) -> Self:
        if self.use_fp16 is not None and self.precision != "auto":
            raise ValueError("give precision or use_fp16, not both: they say the same thing")
        return self

    @property
    def number_format(self) -> Precision:
        """The precision, whichever option gives it."""
        if self.use_fp16 is None:
            return self.precision
        return "fp16" if self.use_fp16 else "fp32"


class HubOptions(Options):
    """Options of the hub's client, under its own names; a folder on disk needs none of them."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""
    cache_dir: Place | None = None
    """Folder of downloaded models."""
    local_files_only: bool = False
    """Never download."""
    token: Annotated[Secret | None, Field(exclude=True, repr=False)] = None
    """Hub token; in no dump, repr or pickle."""


class LocalOptions(PairOptions, LayerOptions, BatchOptions, DeviceOptions, HubOptions):
    """The options of a model that runs in this process."""


class RequestOptions(Options):
    """The options of requests to a server."""

    dialect: str = "auto"
    """The server's protocol: docs/remote.md; 'auto' asks the server."""
    api_key: Annotated[Secret | None, Field(exclude=True, repr=False)] = None
    """The server's key, else the environment's; in no dump, repr or pickle."""
    deployment: str | None = None
    """Deployment of an Azure endpoint."""
    connect_timeout: Seconds = 5.0
    """Seconds to wait for a connection to the server."""
    read_timeout: Seconds = 30.0
    """Longest silence of the server, in seconds."""
    request_timeout: Seconds = 60.0
    """Seconds for one request to the server and its retries."""
    max_retries: Annotated[Whole, Field(ge=0)] = 3
    """Retries of a request that the server failed."""
    max_concurrency: Annotated[Whole, Field(ge=1)] = 8
    """Most requests to the server at once."""


class EmbedderOptions(EncodingOptions, BatchOptions, DeviceOptions, HubOptions):
    """The options of an embedder that runs in this process."""


class ServerOptions(RequestOptions):
    """The options of a model on a server."""

    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Score on this server, as in http://host:port."""


class ScorerOptions(LocalOptions, ServerOptions):
    """The options of `load_scorer`."""


class WrapperOptions(Options):
    """Scorers around the loaded one."""

    long_passages: LongPassages = "cut"
    """A passage that is too long: cut, read in windows, or an error."""
    draft: Literal["bf16", "fp16"] | None = None
    """Score all in this format, and again in fp32 what can reach top_n or score_threshold."""
    score_cache: Place | None = None
    """File that keeps scores, or ':memory:'; it holds no texts."""


class CutoffOptions(Options):
    """Rules that each shorten a ranking further; None leaves a rule out.

    `min_probability` keeps passages that are at least so likely to be relevant, and `target_recall`
    those that reach `Calibration.threshold`: of a query's relevant passages this share is kept, in
    the mean over queries. Both need a calibration, and may leave nothing: then nothing relevant was
    found.

    `min_n` cuts at the largest gap between two neighbouring raw scores, but keeps so many at least.
    `token_budget` keeps the best passages that together have no more tokens, by the reranker's own
    tokenizer, up to the first that does not fit. If that is the best one, nothing is kept and the
    log says so, unless `always_keep_best`.
    """

    min_probability: Share = None
    """Least calibrated probability to keep."""
    target_recall: Share = None
    """Share of a query's relevant passages to keep, in the mean over queries; calibrated."""
    min_n: Count = None
    """Cut at the largest score gap, keeping at least this many."""
    token_budget: Count = None
    """Most tokens that the kept passages may have together."""
    always_keep_best: bool = False
    """Keep the best passage also where it alone exceeds token_budget."""

    @property
    def needs_calibration(self) -> bool:
        return self.min_probability is not None or self.target_recall is not None


TopN = Annotated[Count, Field(description="How many to keep; all by default.")]
Normalize = Annotated[
    bool, Field(description="Show a logit as its sigmoid, between 0 and 1; the order is the same.")
]


class RankingOptions(CutoffOptions):
    """How scores become a ranking."""

    top_n: TopN = None
    score_threshold: RealNumber | None = None
    """Least score to keep, on the scale that is shown."""
    normalize: Normalize = True
    timeout: Annotated[RealNumber | None, Field(gt=0)] = None
    """Seconds that one call may take, loading the model apart."""
    on_error: OnError = "raise"
    """If scoring fails: raise, or keep the given order for the unscored."""
    calibration: Place | None = None
    """File of bge-rerank calibrate: scores are shown as probabilities."""
    no_text: Literal["last", "drop", "raise"] = "last"
    """Passages without text: last, but not past a threshold or cut-off; dropped or refused."""
    drop_duplicates: bool = False
    """Keep only the first passage of equal texts or ids."""
    explain: bool = False
    """Say which sentence answers; costs a scoring of the sentences."""
    trace_texts: bool = False
    """Put query and passages into OpenTelemetry spans."""
    otel_span: bool = True
    """Record each rerank as a span, if the program uses OpenTelemetry."""

    def blanks_kept(self, blank: Sequence[int]) -> Sequence[int]:
        """Those of the passages without text that follow the ranking: no cut-off may be set."""
        rules = (self.score_threshold, self.min_n, self.token_budget)
        cuts = self.needs_calibration or any(rule is not None for rule in rules)
        return [] if cuts or self.no_text != "last" else blank


ModelName = Annotated[
    str,
    AfterValidator(_model),
    Field(description="Hub id, folder, 'offline', or the name that a server is asked for."),
]

SECRETS = frozenset(name for name, field in ScorerOptions.model_fields.items() if field.exclude)

Where = Literal["on a server", "in this process", "beside a scorer", "encoder", "no cross-encoder"]
LOADED = "has no effect beside scorer=, which is loaded already: give it to load_scorer, or leave "
INAPPLICABLE: Mapping[Where, Sequence[tuple[Iterable[str], str]]] = {
    "on a server": [
        (
            LocalOptions.model_fields.keys() - {"batch_size"},
            "is for models that run in this process, and this one runs on a server: leave it out",
        )
    ],
    "in this process": [
        (
            ServerOptions.model_fields,
            "is for models on a server: give its base_url as well, or leave it out",
        )
    ],
    "beside a scorer": [
        (
            WrapperOptions.model_fields,
            "is for a model that is loaded here: give scorer=CachedScorer(...) instead",
        ),
        (["model", *ScorerOptions.model_fields], f"{LOADED}it out"),
    ],
    "encoder": [
        (
            [*LayerOptions.model_fields, "prompt"],
            "is one of the options of the LLM rerankers, and {model} is none: leave it out",
        )
    ],
    "no cross-encoder": [
        (
            ["truncation"],
            "is for cross-encoders, and {model} is an embedder or an LLM reranker: leave it out",
        )
    ],
}
"""Options that have no meaning in a place, and what to say of them there."""


def reject_inapplicable_options(options: Options, where: Where, *, model: str = "") -> None:
    """Raise `InvalidInputError` for an option that was given and has no meaning there."""
    fields = type(options).model_fields
    for names, reason in INAPPLICABLE[where]:
        for name in names:
            if name in fields and getattr(options, name) != fields[name].default:
                raise InvalidInputError(f"{name} {reason.format(model=model)}")
