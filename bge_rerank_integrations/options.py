"""Every option, declared once: its name, type, default, bounds and one line of help.

Groups of options compose by inheritance: an adapter inherits their fields, a function takes them as
keywords (`write_out`), a command turns them into flags, and each callee takes only the group that
it needs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

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
    """Maximum tokens of a pair, or of an embedder's text; None: 512, or the model's own limit."""
    query_max_length: Count = None
    """Maximum tokens of a query; None: three quarters of max_length, for an embedder all of it."""
    query_instruction: Text | None = None
    """Text put before each query."""
    passage_instruction: Text | None = None
    """Text put before each passage."""
    special_tokens: SpecialTokens = "literal"
    """How to read a control token such as </s> in a text: plain text, an error, or the token."""


class PairOptions(EncodingOptions):
    """How a pair becomes tokens; None leaves it to the model."""

    truncation: Truncation | None = None
    """Text to cut: the passage or the longer; None: as in the model's folder, else the passage."""
    label: Label | None = None
    """The label that means relevant, for a classifier with several labels."""
    prompt: Text | None = None
    """The question in an LLM reranker's prompt."""


class LayerOptions(Options):
    """Which layers of an LLM reranker give scores, and how passages are compressed on the way.

    `head_indexing="request"` gives the i-th requested layer of the lightweight model head i, as
    the reference does; `"layer"` gives each layer its own.
    """

    cutoff_layers: Layers | None = None
    """Layers at which a layerwise LLM reranker gives scores; None: the last."""
    compress_ratio: Annotated[Whole, Field(ge=1)] = 1
    """How many passage tokens a lightweight model averages into one."""
    compress_layers: Layers = ()
    """Layers before which a lightweight model compresses passages."""
    head_indexing: HeadIndexing = "request"
    """How a lightweight model picks a layer's head: by position in the request, or by layer."""


class BatchOptions(Options):
    """How much is computed at once; None leaves it to the device's plan."""

    batch_size: Count = None
    """Maximum pairs in a batch, or passages in a request to a server."""
    max_batch_tokens: Count = None
    """Maximum tokens in a batch; None: chosen for the device."""
    show_progress: bool = False
    """Show a progress bar over the batches."""


class DeviceOptions(Options):
    """Where a model runs, and in which number format."""

    backend: Backend = "auto"
    """Runtime: torch, or onnx or openvino for an encoder's graph."""
    file_name: str | None = None
    """Graph in the model's folder, such as onnx/model_O3.onnx."""
    device: Devices | None = None
    """cpu, cuda, cuda:1, xpu or mps, or several that share each call."""
    precision: Precision = "auto"
    """Number format of the forward pass; scores are float32."""
    attention: CudaAttention | None = None
    """Attention on CUDA; None: padded. The others have not been run on a GPU."""
    keep_alive: Annotated[RealNumber, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds a model stays loaded after its last scorer or adapter is gone; 0 unloads at once."""


class HubOptions(Options):
    """Options of the Hugging Face Hub client, under its names; a folder on disk needs none."""

    revision: str | None = None
    """Branch, tag or commit on the hub."""
    cache_dir: Place | None = None
    """Folder of downloaded models."""
    local_files_only: bool = False
    """Never download."""
    token: Annotated[Secret | None, Field(exclude=True, repr=False)] = None
    """Hub token; never part of a dump, repr or pickle."""


class LocalOptions(PairOptions, LayerOptions, BatchOptions, DeviceOptions, HubOptions):
    """The options of a model that runs in this process."""


class RequestOptions(Options):
    """The options of requests to a server."""

    dialect: str = "auto"
    """The server's protocol (see docs/remote.md); 'auto' detects it."""
    api_key: Annotated[Secret | None, Field(exclude=True, repr=False)] = None
    """The server's key, else from the environment; never part of a dump, repr or pickle."""
    deployment: str | None = None
    """Deployment of an Azure endpoint."""
    connect_timeout: Seconds = 5.0
    """Seconds to wait for a connection to the server."""
    read_timeout: Seconds = 30.0
    """Seconds to wait for the server to send more data."""
    request_timeout: Seconds = 60.0
    """Seconds for one request to the server, including its retries."""
    max_retries: Annotated[Whole, Field(ge=0)] = 3
    """How often a failed request is retried."""
    max_concurrency: Annotated[Whole, Field(ge=1)] = 8
    """Maximum concurrent requests to the server."""


class EmbedderOptions(EncodingOptions, BatchOptions, DeviceOptions, HubOptions):
    """The options of an embedder that runs in this process."""


class ServerOptions(RequestOptions):
    """The options of a model on a server."""

    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Address of a server that runs the model, such as http://host:port."""


class ScorerOptions(LocalOptions, ServerOptions):
    """The options of `load_scorer`."""


class WrapperOptions(Options):
    """Scorers that wrap the loaded one."""

    long_passages: LongPassages = "cut"
    """How to read a passage that is too long: cut, in windows, or as an error."""
    draft: Literal["bf16", "fp16"] | None = None
    """Score all in this format, then what can reach top_n or score_threshold again in fp32."""
    score_cache: Place | None = None
    """File that caches scores, or ':memory:'; it holds no texts."""


class CutoffOptions(Options):
    """Cut-off rules, each of which can shorten the ranking further; None turns a rule off.

    `min_probability` keeps passages whose probability of relevance is at least this high.
    `target_recall` keeps passages that reach `Calibration.threshold`, which keeps this share of a
    query's relevant passages, averaged over queries. Both need a calibration. If they keep nothing,
    nothing relevant was found.

    `min_n` cuts at the largest gap between neighbouring raw scores, but keeps at least this many.
    `token_budget` keeps the best passages up to the first that would exceed this many tokens in
    total, counted by the reranker's tokenizer. If even the best one exceeds it, nothing is kept and
    a warning is logged, unless `always_keep_best` is set.
    """

    min_probability: Share = None
    """Minimum calibrated probability of a passage to keep."""
    target_recall: Share = None
    """Mean share of a query's relevant passages to keep; needs a calibration."""
    min_n: Count = None
    """Cut at the largest score gap, but keep at least this many."""
    token_budget: Count = None
    """Maximum total tokens of the kept passages."""
    always_keep_best: bool = False
    """Keep the best passage even if it alone exceeds token_budget."""

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
    """Minimum score to keep, on the scale that is shown."""
    normalize: Normalize = True
    timeout: Annotated[RealNumber | None, Field(gt=0)] = None
    """Time limit of one call in seconds, not counting the time to load the model."""
    on_error: OnError = "raise"
    """If scoring fails: raise, or keep the given order for unscored passages."""
    calibration: Place | None = None
    """File written by bge-rerank calibrate; scores are shown as probabilities."""
    no_text: Literal["last", "drop", "raise"] = "last"
    """Passages without text: put last (if no threshold or cut-off is set), drop, or raise."""
    drop_duplicates: bool = False
    """Keep only the first passage of equal texts or ids."""
    explain: bool = False
    """Find the sentence that answers best, by scoring the sentences too."""
    trace_texts: bool = False
    """Put query and passages into OpenTelemetry spans."""
    otel_span: bool = True
    """Record each rerank as a span, if the program uses OpenTelemetry."""

    def blanks_kept(self, blank: Sequence[int]) -> Sequence[int]:
        """The passages without text that follow the ranking; none if a cut-off is set."""
        rules = (self.score_threshold, self.min_n, self.token_budget)
        cuts = self.needs_calibration or any(rule is not None for rule in rules)
        return [] if cuts or self.no_text != "last" else blank


ModelName = Annotated[
    str,
    AfterValidator(_model),
    Field(description="Hub id, folder, 'offline', or the model name to send to a server."),
]

SECRETS = frozenset(name for name, field in ScorerOptions.model_fields.items() if field.exclude)

Where = Literal["on a server", "in this process", "with a scorer", "encoder", "not a cross-encoder"]
LOADED = "has no effect with scorer=, which is already loaded: give it to load_scorer, or leave "
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
    "with a scorer": [
        (
            WrapperOptions.model_fields,
            "is for a model that is loaded here: give scorer=CachedScorer(...) instead",
        ),
        (["model", *ScorerOptions.model_fields], f"{LOADED}it out"),
    ],
    "encoder": [
        (
            [*LayerOptions.model_fields, "prompt"],
            "is an option of LLM rerankers, and {model} is not one: leave it out",
        )
    ],
    "not a cross-encoder": [
        (
            ["truncation"],
            "is for cross-encoders, and {model} is an embedder or an LLM reranker: leave it out",
        )
    ],
}
"""For each place, the options that do not apply there, and the message that says so."""


def reject_inapplicable_options(options: Options, where: Where, *, model: str = "") -> None:
    """Raise `InvalidInputError` for an option that was given but does not apply there."""
    fields = type(options).model_fields
    for names, reason in INAPPLICABLE[where]:
        for name in names:
            if name in fields and getattr(options, name) != fields[name].default:
                raise InvalidInputError(f"{name} {reason.format(model=model)}")
