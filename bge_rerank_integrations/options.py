"""Every option, declared once: its name, type, default, bounds and one line of help.

Groups of options are pydantic models and are composed by inheritance, so an adapter that inherits
from them has flat fields, a function takes the same keywords (`function_of`), a command gets its
flags from them, and a callee takes the group that it needs.
"""

import difflib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter, signature
from numbers import Integral, Number, Real
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from bge_rerank_integrations.base.address import is_address, may_be_tag, read_address
from bge_rerank_integrations.base.contract import check_text
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

Group = TypeVar("Group", bound="Options")


def whole_number(given: object) -> int | None:
    """The number as Python's own, also if it is numpy's; None for True, 2.0, "2" and the like."""
    if isinstance(given, bool) or not isinstance(given, Integral):
        return None
    return int(given)


def real_number(given: object) -> float | None:
    """The number as Python's own, also if it is numpy's; None for True, NaN, "2" and the like."""
    if isinstance(given, bool) or not isinstance(given, Real) or math.isnan(given):
        return None
    return float(given)


def count_from(least: int, given: object, name: str, remark: str = "") -> int:
    """The whole number; raises `InvalidInputError` for anything else, or less than `least`."""
    number = whole_number(given)
    if number is None or number < least:
        raise InvalidInputError(
            f"{name} is {given!r}; it must be a whole number from {least}{remark}"
        )
    return number


def listed(given: object, name: str) -> tuple[Any, ...]:
    """The values of a list, tuple or array; raises `InvalidInputError` for a single value."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInputError(f"{name} is {given!r}; it must be a list, such as [{given!r}]")
    return tuple(given)


def _number(read: Callable[[object], float | None]) -> BeforeValidator:
    def check(given: object) -> object:
        if (number := read(given)) is None:
            raise PydanticCustomError("not_a_number", "not a number")
        return number

    return BeforeValidator(check)


def _label(given: object) -> object:
    if given is not None and not isinstance(given, str) and whole_number(given) is None:
        raise InvalidInputError(f"label is {given!r}; it must be a label's number or its name")
    return given if given is None or isinstance(given, str) else whole_number(given)


def _devices(given: object) -> object:
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise InvalidInputError(
            f"device is {given!r}; it must be a name, such as 'cuda:0', or a list of names"
        )
    return given[0] if len(given) == 1 else tuple(given)


def _address(given: str) -> str:
    read_address(given)  # raises for one that holds a password, which dumps and logs would show
    return given


def _model(given: str) -> str:
    # `name:567` is a model if there is a base_url; without one, loading refuses it
    return _address(given) if is_address(given) and not may_be_tag(given) else given


if TYPE_CHECKING:  # what callers may give; the fields hold what is named below
    Whole = int
    RealNumber = float
    Layers = Sequence[int]
    Devices = str | Sequence[str]
    Secret = SecretStr | str
    Place = str | Path
    Text = str
    Label = int | str
else:
    Whole = Annotated[int, _number(whole_number)]
    RealNumber = Annotated[float, _number(real_number)]
    Layers = Annotated[
        tuple[Whole, ...], BeforeValidator(lambda v, info: listed(v, info.field_name))
    ]
    Devices = Annotated[str | tuple[str, ...], BeforeValidator(_devices)]
    Secret = SecretStr
    Place = Annotated[
        str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, Path) else given)
    ]
    Text = Annotated[  # bytes are no text
        str, Field(strict=True), AfterValidator(lambda v, info: check_text(v, info.field_name))
    ]
    Label = Annotated[int | str, BeforeValidator(_label)]

Count = Annotated[Whole | None, Field(ge=1)]
Seconds = Annotated[RealNumber, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[RealNumber | None, Field(gt=0, lt=1)]


def secret_text(secret: Secret | None) -> str | None:
    """The text of a secret, for the one place that sends it."""
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret


def redact_validation_errors(
    cls: type[Group], given: Any, handler: ModelWrapValidatorHandler[Group], info: ValidationInfo
) -> Group:
    """Validate; errors name the option, its value, the reason and the remedy, and show no secret.

    pydantic shows every argument or none, keys and tokens among them, so it shows none. Here a
    number is shown, and a text that was given where no text belongs.
    """
    try:
        return handler(given)
    except ValidationError as error:
        caller = (info.context or {}).get("caller", cls.__name__)
        lines: dict[Any, InitErrorDetails] = {}  # one for each option, however many types it has
        for line in error.errors(include_url=False):
            lines.setdefault(line["loc"][:1], _redacted(cls, line, caller))
        raise ValidationError.from_exception_data(
            error.title, [*lines.values()], hide_input=True
        ) from None


def _redacted(cls: type[BaseModel], line: ErrorDetails, caller: str) -> InitErrorDetails:
    kind, place, given, ctx = line["type"], line["loc"], line["input"], line.get("ctx", {})
    if kind == "value_error":  # raised by a check of this package, whose message is complete
        return InitErrorDetails(type=kind, loc=place, input=None, ctx=ctx)
    name = str(place[0]) if place else ""
    message, shown = line["msg"], None
    if kind == "extra_forbidden":
        message = no_such_option(name, cls.model_fields, caller)
    elif (field := cls.model_fields.get(name)) is not None and kind != "frozen_field":
        value, types = f"of type {type(given).__name__}", set(kinds(field.annotation))
        misplaced_text = isinstance(given, str) and str not in types
        if not field.exclude and (given is None or isinstance(given, Number) or misplaced_text):
            value, shown = f"{given!r:.60}", given
        verb = "has" if isinstance(place[-1], int) else "is"
        message = f"{name} {verb} {value}; it must be {expected(field)}"
    # `errors()` of what is raised goes into logs and answers too, and has the input of each line
    said = PydanticCustomError(kind, "{message}", {**ctx, "message": message})
    return InitErrorDetails(type=said, loc=(name,) if name else (), input=shown)


def no_such_option(name: str, options: Collection[str], caller: str) -> str:
    """A message that names the nearest of the caller's options."""
    said = f"{caller} has no option {name!r}"
    if name == "passage_max_length":
        return (
            f"{said}: max_length is the most tokens of query and passage together, "
            "query_max_length of the query; FlagEmbedding's rerankers ignore it as well"
        )
    near = KNOWN_ELSEWHERE.get(name)
    if near not in options:
        near = next(iter(difflib.get_close_matches(name, options, n=1)), None)
    return f"{said}; did you mean {near}?" if near else said


def kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, each Literal and tuple whole."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from kinds(get_args(annotation)[0])
    elif get_origin(annotation) is tuple:
        yield annotation
    else:
        for part in get_args(annotation):
            yield from kinds(part)


def expected(field: FieldInfo) -> str:
    """The values that an option takes, in words, as in "a whole number from 1, or None"."""
    bounds = {
        name: value
        for metadata in field.metadata
        for name in ("ge", "gt", "lt")
        if (value := getattr(metadata, name, None)) is not None
    }
    limits = {"ge": " from {ge}", "gt": " above {gt}", "gt lt": " between {gt} and {lt}"}
    within = limits.get(" ".join(bounds), "").format(**bounds)
    names = {bool: "True or False", str: "text", SecretStr: "text"}
    names |= {int: f"a whole number{within}", float: f"a number{within}"}
    types = list(kinds(field.annotation))
    words: list[str] = []
    for kind in types:
        if get_origin(kind) is Literal:
            words += map(repr, get_args(kind))
        elif get_origin(kind) is tuple:
            whole = int in kinds(get_args(kind)[0])
            words.append(f"a list of {'whole numbers' if whole else 'names'}")
        elif kind is not NoneType:
            words.append(names.get(kind) or f"a {kind.__name__}")
    said = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{said}, or None" if NoneType in types else said


class Options(BaseModel):
    """A group of options."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    if not TYPE_CHECKING:  # type checkers know the fields

        def __new__(cls, *given: object, **_: object) -> Self:
            if given and cls.__init__ is BaseModel.__init__:  # drop-ins have another signature
                first = "model" if "model" in cls.model_fields else next(iter(cls.model_fields))
                raise InvalidInputError(
                    f"{cls.__name__} takes its options by name: {first}={given[0]!r:.60}"
                )
            return super().__new__(cls)

    _bge_errors = model_validator(mode="wrap")(redact_validation_errors)

    def group(self, group: type[Group]) -> Group:
        """These options' values of a group that they are composed of."""
        return group.model_construct(**{name: getattr(self, name) for name in group.model_fields})

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, secrets included, as keywords."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if (value := getattr(self, name)) != field.default
        }

    def values(self) -> tuple[Any, ...]:
        """All values, in the order of their declaration: equal ones ask for the same."""
        return tuple(getattr(self, name) for name in type(self).model_fields)


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

KNOWN_ELSEWHERE = {
    "top_k": "top_n",
    "threshold": "score_threshold",
    "min_score": "score_threshold",
    "similarity_cutoff": "score_threshold",
    "use_bf16": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "devices": "device",
    "model_name": "model",
    "model_name_or_path": "model",
    "url": "base_url",
}
"""Names of other libraries' options, and the name of the same here."""

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


def read_options(cls: type[Group], given: Mapping[str, Any], *, caller: str) -> Group:
    """The options of a function's caller; raises `InvalidInputError` naming what is wrong."""
    try:
        return cls.model_validate(dict(given), context={"caller": caller})
    except ValidationError as error:
        lines = [line["msg"].removeprefix("Value error, ") for line in error.errors()]
        raise InvalidInputError("; ".join(lines)) from None


def write_out(function: Callable[..., Any], cls: Any) -> Any:
    """The function, with the options that its `**options` are read as in its signature."""
    own, hints = signature(function), get_type_hints(cls)
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in cls.model_fields.items()
    ]
    first = list(own.parameters.values())[:-1]
    function.__signature__ = own.replace(parameters=[*first, *options])  # type: ignore[attr-defined]
    return function
