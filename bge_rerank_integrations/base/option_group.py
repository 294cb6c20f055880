"""Declare, read and validate groups of options.

A group is a pydantic model. `read_options` reads the keywords of a caller; an error names the
option, its value, the reason and the remedy, and shows no secret.
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

from bge_rerank_integrations.base.contract import check_text
from bge_rerank_integrations.errors import InvalidInputError

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


def count_from(low: int, given: object, name: str, remark: str = "") -> int:
    """The whole number; raises `InvalidInputError` for anything else and for less than `low`."""
    number = whole_number(given)
    if number is None or number < low:
        raise InvalidInputError(
            f"{name} is {given!r}; it must be a whole number from {low}{remark}"
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


if TYPE_CHECKING:  # callers may give these types; the fields hold those named below
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
    Text = Annotated[  # bytes are not text
        str, Field(strict=True), AfterValidator(lambda v, info: check_text(v, info.field_name))
    ]
    Label = Annotated[int | str, BeforeValidator(_label)]

Count = Annotated[Whole | None, Field(ge=1)]
Seconds = Annotated[RealNumber, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[RealNumber | None, Field(gt=0, lt=1)]


OTHER_NAMES = {
    "top_k": "top_n",
    "threshold": "score_threshold",
    "min_score": "score_threshold",
    "similarity_cutoff": "score_threshold",
    "use_fp16": "precision",
    "use_bf16": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "devices": "device",
    "model_name": "model",
    "model_name_or_path": "model",
    "url": "base_url",
}
"""Names of options in other libraries, and our names of the same options."""


def secret_text(secret: Secret | None) -> str | None:
    """The text of a secret, only for the code that sends it."""
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret


def redact_validation_errors(
    cls: type[Group], given: Any, handler: ModelWrapValidatorHandler[Group], info: ValidationInfo
) -> Group:
    """Validate; errors name the option, its value, the reason and the remedy, and show no secret.

    pydantic shows either no argument or every one, keys and tokens included, so it shows none here.
    Our messages show numbers, and a text only if the option does not take text.
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
    # programs log the error's `errors()` or send them to clients; they hold the input of each line
    error = PydanticCustomError(kind, "{message}", {**ctx, "message": message})
    return InitErrorDetails(type=error, loc=(name,) if name else (), input=shown)


def no_such_option(name: str, options: Collection[str], caller: str) -> str:
    """A message that names the caller's option with the most similar name."""
    message = f"{caller} has no option {name!r}"
    if name == "passage_max_length":
        return (
            f"{message}: max_length limits the tokens of query and passage together, "
            "query_max_length those of the query; FlagEmbedding's rerankers ignore it as well"
        )
    near = OTHER_NAMES.get(name)
    if near not in options:
        near = next(iter(difflib.get_close_matches(name, options, n=1)), None)
    return f"{message}; did you mean {near}?" if near else message


def kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation; a Literal or tuple stays whole."""
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
    text = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return f"{text}, or None" if NoneType in types else text


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
        """The options of one of the groups that this group is composed of."""
        return group.model_construct(**{name: getattr(self, name) for name in group.model_fields})

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, secrets included, as keywords."""
        return {
            name: value
            for name, field in type(self).model_fields.items()
            if (value := getattr(self, name)) != field.default
        }


def read_options(cls: type[Group], given: Mapping[str, Any], *, caller: str) -> Group:
    """The validated options of a function's caller; raises `InvalidInputError`."""
    try:
        return cls.model_validate(dict(given), context={"caller": caller})
    except ValidationError as error:
        lines = [line["msg"].removeprefix("Value error, ") for line in error.errors()]
        raise InvalidInputError("; ".join(lines)) from None


def write_out(function: Callable[..., Any], cls: Any) -> Any:
    """The function, with the options of `cls` in its signature instead of `**options`."""
    own, hints = signature(function), get_type_hints(cls)
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in cls.model_fields.items()
    ]
    first = list(own.parameters.values())[:-1]
    function.__signature__ = own.replace(parameters=[*first, *options])  # type: ignore[attr-defined]
    return function
