"""Every option, declared once: its name, type, default, bounds and one line of help.

Groups of options are pydantic models and are composed by inheritance, so an adapter that inherits
from them has flat fields, a function takes the same keywords (`function_of`), a command gets its
flags from them, and a callee takes the group that it needs.
"""

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def listed(given: object, name: str) -> tuple[Any, ...]:
    """The values of a list, tuple or array; raises `InvalidInputError` for a single value."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInputError(f"{name} is {given!r}; it must be a list, such as [{given!r}]")
    return tuple(given)


def _whole(given: object) -> object:
    if (number := whole_number(given)) is None:
        raise PydanticCustomError("whole_number", "not a whole number")
    return number


def _real(given: object) -> object:
    if (number := real_number(given)) is None:
        raise PydanticCustomError("real_number", "not a number")
    return number


def _text(given: str, info: ValidationInfo) -> str:
    return check_text(given, str(info.field_name))


def _layers(given: object, info: ValidationInfo) -> tuple[Any, ...]:
    return listed(given, str(info.field_name))


def _label(given: object) -> object:
    if isinstance(given, str) or given is None:
        return given
    if (number := whole_number(given)) is None:
        raise InvalidInputError(f"label is {given!r}; it must be a label's number or its name")
    return number


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
    Whole = Annotated[int, BeforeValidator(_whole)]
    RealNumber = Annotated[float, BeforeValidator(_real)]
    Layers = Annotated[tuple[Whole, ...], BeforeValidator(_layers)]
    Devices = Annotated[str | tuple[str, ...], BeforeValidator(_devices)]
    Secret = SecretStr
    Place = Annotated[
        str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, Path) else given)
    ]
    Text = Annotated[str, Field(strict=True), AfterValidator(_text)]  # bytes are no text
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
        found = {line["loc"][:1]: line for line in reversed(error.errors(include_url=False))}
        lines = [_redacted(cls, line, caller) for line in reversed(found.values())]
        raise ValidationError.from_exception_data(error.title, lines, hide_input=True) from None


def _redacted(cls: type[BaseModel], line: ErrorDetails, caller: str) -> InitErrorDetails:
    kind, place, given, ctx = line["type"], line["loc"], line["input"], line.get("ctx", {})
    name = str(place[0]) if place else ""
    field = cls.model_fields.get(name)
    if kind == "value_error":  # raised by a check of this package, whose message is complete
        return InitErrorDetails(type=kind, loc=place, input=None, ctx=ctx)
    shown: object = None
    if kind == "extra_forbidden":
        message = _no_such_option(name, cls, caller)
    elif field is None:
        message = line["msg"]
    else:
        value, shown = _shown(given, field)
        verb = "has" if isinstance(place[-1], int) else "is"
        message = f"{name} {verb} {value}; it must be {expected(field)}"
    # `errors()` of what is raised goes into logs and answers too, and has the input of each line
    said = PydanticCustomError(kind, "{message}", {**ctx, "message": message})
    return InitErrorDetails(type=said, loc=(name,) if name else (), input=shown)


def _shown(given: object, field: FieldInfo) -> tuple[str, object]:
    """The value as a message may show it: a number, or a text in the place of something else."""
    taken = set(kinds(field.annotation))
    number = given is None or isinstance(given, Number)
    if not field.exclude and (number or (isinstance(given, str) and str not in taken)):
        return f"{given!r:.60}", given
    return f"of type {type(given).__name__}", None


def _no_such_option(name: str, cls: type[BaseModel], caller: str) -> str:
    if name == "passage_max_length":
        return (
            f"{caller} has no option {name!r}: max_length is the most tokens of query and passage "
            "together, query_max_length of the query; FlagEmbedding's rerankers ignore it as well"
        )
    near = KNOWN_ELSEWHERE.get(name)
    if near not in cls.model_fields:
        near = next(iter(difflib.get_close_matches(name, cls.model_fields, n=1)), None)
    return f"{caller} has no option {name!r}" + (f"; did you mean {near}?" if near else "")


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


WORDS = {bool: "True or False", str: "text", SecretStr: "text"}


def expected(field: FieldInfo) -> str:
    """The values that an option takes, in words, as in "a whole number from 1, or None"."""
    bounds = {
        name: value
        for metadata in field.metadata
        for name in ("ge", "gt", "lt")
        if (value := getattr(metadata, name, None)) is not None
    }
    words = []
    for kind in kinds(field.annotation):
        if get_origin(kind) is Literal:
            words += [repr(choice) for choice in get_args(kind)]
        elif get_origin(kind) is tuple:
            numbers = int in kinds(get_args(kind)[0])
            words.append(f"a list of {'whole numbers' if numbers else 'names'}")
        elif kind is int:
            words.append(f"a whole number from {bounds['ge']}" if bounds else "a whole number")
        elif kind is float and "lt" in bounds:
            words.append(f"a number between {bounds['gt']} and {bounds['lt']}")
        elif kind is float:
            words.append(f"a number above {bounds['gt']}" if bounds else "a number")
        elif kind is not NoneType:
            words.append(WORDS.get(kind) or f"a {kind.__name__}")
    said = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return f"{said}, or None" if NoneType in kinds(field.annotation) else said


class Options(BaseModel):
    """A group of options."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    _errors = model_validator(mode="wrap")(redact_validation_errors)

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


class PairOptions(Options):
    """How a pair becomes tokens; None leaves it to the model."""

    max_length: Annotated[
        Count, Field(description="Most tokens of a pair; None: 512, or less if the model's own.")
    ] = None
    query_max_length: Annotated[
        Count, Field(description="Most tokens of a query; None: three quarters of max_length.")
    ] = None
    query_instruction: Annotated[Text | None, Field(description="Text put before each query.")] = (
        None
    )
    passage_instruction: Annotated[
        Text | None, Field(description="Text put before each passage.")
    ] = None
    special_tokens: Annotated[
        SpecialTokens,
        Field(description="A control token such as </s> in a text: plain text, an error, or read."),
    ] = "literal"
    truncation: Annotated[
        Truncation | None,
        Field(
            description="A pair that is too long loses the passage's end, or the longer text's; "
            "None: the longer text's where sentence-transformers saved the model."
        ),
    ] = None
    label: Annotated[
        Label | None, Field(description="Which label of a classifier of several means relevant.")
    ] = None
    prompt: Annotated[Text | None, Field(description="An LLM reranker's question.")] = None


class LayerOptions(Options):
    """Which layers of an LLM reranker give scores, and how passages are compressed on the way.

    `head_indexing="request"` gives the i-th requested layer of the lightweight model head i, as
    the reference does; `"layer"` gives each layer its own.
    """

    cutoff_layers: Annotated[
        Layers | None,
        Field(
            description="Layers that score, of an LLM reranker that has several; None: the last."
        ),
    ] = None
    compress_ratio: Annotated[
        Whole, Field(ge=1, description="Passage tokens averaged into one, by a lightweight model.")
    ] = 1
    compress_layers: Annotated[
        Layers, Field(description="Layers before which a lightweight model compresses passages.")
    ] = ()
    head_indexing: Annotated[
        HeadIndexing, Field(description="A lightweight model's head for a layer: by place or own.")
    ] = "request"


class BatchOptions(Options):
    """How much is computed at once; None leaves it to the device's plan."""

    batch_size: Annotated[
        Count, Field(description="Most pairs in a batch, or passages in a request to a server.")
    ] = None
    max_batch_tokens: Annotated[
        Count, Field(description="Most tokens in a batch; None: chosen by device.")
    ] = None
    show_progress: Annotated[bool, Field(description="A progress bar over the batches.")] = False


class DeviceOptions(Options):
    """Where a model runs, and in which number format."""

    backend: Annotated[
        Backend, Field(description="torch, or an encoder's ONNX graph on onnx or openvino.")
    ] = "auto"
    file_name: Annotated[
        str | None,
        Field(description="Graph of the model's folder, such as onnx/model_O3.onnx."),
    ] = None
    device: Annotated[
        Devices | None,
        Field(description="cpu, cuda, cuda:1, xpu or mps, or several that share each call."),
    ] = None
    precision: Annotated[
        Precision, Field(description="Number format of the forward pass; scores are float32.")
    ] = "auto"
    use_fp16: Annotated[
        bool | None,
        Field(description="FlagEmbedding's name: True is precision='fp16', False 'fp32'."),
    ] = None

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
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

    revision: Annotated[str | None, Field(description="Branch, tag or commit on the hub.")] = None
    cache_dir: Annotated[Place | None, Field(description="Folder of downloaded models.")] = None
    local_files_only: Annotated[bool, Field(description="Never download.")] = False
    token: Annotated[
        Secret | None,
        Field(exclude=True, repr=False, description="Hub token; in no dump, repr or pickle."),
    ] = None


class LocalOptions(PairOptions, LayerOptions, BatchOptions, DeviceOptions, HubOptions):
    """The options of a model that runs in this process."""


class ServerOptions(Options):
    """The options of a model on a server."""

    base_url: Annotated[
        Annotated[str, AfterValidator(_address)] | None,
        Field(description="Score on this server, as in http://host:port."),
    ] = None
    dialect: Annotated[
        str, Field(description="The server's protocol: docs/remote.md; 'auto' asks the server.")
    ] = "auto"
    api_key: Annotated[
        Secret | None,
        Field(
            exclude=True,
            repr=False,
            description="The server's key, else the environment's; in no dump, repr or pickle.",
        ),
    ] = None
    deployment: Annotated[str | None, Field(description="Deployment of an Azure endpoint.")] = None
    connect_timeout: Annotated[
        Seconds, Field(description="Seconds to wait for a connection to the server.")
    ] = 5.0
    read_timeout: Annotated[
        Seconds, Field(description="Longest silence of the server, in seconds.")
    ] = 30.0
    request_timeout: Annotated[
        Seconds, Field(description="Seconds for one request to the server and its retries.")
    ] = 60.0
    max_retries: Annotated[
        Whole, Field(ge=0, description="Retries of a request that the server failed.")
    ] = 3
    max_concurrency: Annotated[
        Whole, Field(ge=1, description="Most requests to the server at once.")
    ] = 8


class ScorerOptions(LocalOptions, ServerOptions):
    """The options of `load_scorer`."""


class WrapperOptions(Options):
    """Scorers around the loaded one."""

    long_passages: Annotated[
        LongPassages,
        Field(description="A passage that is too long: cut, read in windows, or an error."),
    ] = "cut"
    score_cache: Annotated[
        Place | None,
        Field(description="File that keeps scores, or ':memory:'; it holds no texts."),
    ] = None


class CutoffOptions(Options):
    """Rules that each shorten a ranking further; None leaves a rule out.

    `min_probability` keeps passages that are at least so likely to be relevant, and `target_recall`
    those that reach `Calibration.threshold`: each relevant one is kept with that probability. Both
    need a calibration, and may leave nothing: then nothing relevant was found.

    `min_n` cuts at the largest gap between two neighbouring raw scores, but keeps so many at least.
    `token_budget` keeps the best passages that together have no more tokens, by the reranker's own
    tokenizer, up to the first that does not fit. If that is the best one, nothing is kept and the
    log says so, unless `always_keep_best`.
    """

    min_probability: Annotated[
        Share, Field(description="Least calibrated probability to keep.")
    ] = None
    target_recall: Annotated[
        Share, Field(description="Keep each relevant passage with this calibrated probability.")
    ] = None
    min_n: Annotated[
        Count, Field(description="Cut at the largest score gap, keeping at least this many.")
    ] = None
    token_budget: Annotated[
        Count, Field(description="Most tokens that the kept passages may have together.")
    ] = None
    always_keep_best: Annotated[
        bool, Field(description="Keep the best passage also where it alone exceeds token_budget.")
    ] = False

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
    score_threshold: Annotated[
        RealNumber | None, Field(description="Least score to keep, on the scale that is shown.")
    ] = None
    normalize: Normalize = True
    timeout: Annotated[
        RealNumber | None,
        Field(gt=0, description="Seconds that one call may take, loading the model apart."),
    ] = None
    on_error: Annotated[
        OnError,
        Field(description="If scoring fails: raise, or keep the given order for the unscored."),
    ] = "raise"
    calibration: Annotated[
        Place | None,
        Field(description="File of bge-rerank calibrate: scores are shown as probabilities."),
    ] = None
    no_text: Annotated[
        Literal["last", "drop", "raise"],
        Field(
            description="Passages without text: last, but not past a threshold or cut-off; dropped "
            "or refused."
        ),
    ] = "last"
    drop_duplicates: Annotated[
        bool, Field(description="Keep only the first passage of equal texts or ids.")
    ] = False
    explain: Annotated[
        bool, Field(description="Say which sentence answers; costs a scoring of the sentences.")
    ] = False
    trace_texts: Annotated[
        bool, Field(description="Put query and passages into OpenTelemetry spans.")
    ] = False
    otel_span: Annotated[
        bool, Field(description="Record each rerank as a span, if the program uses OpenTelemetry.")
    ] = True

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


def write_out(function: Callable[..., Any], cls: type[Options]) -> Callable[..., Any]:
    """The function, with the options that its `**options` are read as in its signature."""
    own, hints = signature(function), get_type_hints(cls)
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in cls.model_fields.items()
    ]
    first = list(own.parameters.values())[:-1]
    function.__signature__ = own.replace(parameters=[*first, *options])  # type: ignore[attr-defined]
    return function
