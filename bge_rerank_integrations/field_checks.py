"""Checks of an adapter's fields: errors show the value and no secret, a ready scorer is one."""

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from bge_rerank_integrations.base.address import is_address, read_address
from bge_rerank_integrations.option_checks import check_scorer

Fields = TypeVar("Fields", bound=BaseModel)


def checked_base_url(url: str | None) -> str | None:
    """The address, if it may be in every dump and repr; raises `InvalidInputError`."""
    if url is not None:
        read_address(url)
    return url


def checked_model(place: str) -> str:
    """The model, by the rule of `checked_base_url` if it is an address."""
    if is_address(place):
        read_address(place)
    return place


def checked_scorer(scorer: Any) -> Any:
    """The scorer, or None; raises `InvalidInputError` for what has not all that a scorer has."""
    if scorer is not None:
        check_scorer(scorer, "scorer")
    return scorer


def errors_that_tell(
    cls: type[Fields], given: Any, handler: ModelWrapValidatorHandler[Fields]
) -> Fields:
    """What pydantic makes of the fields; its errors name a wrong number and the option meant.

    pydantic itself shows every argument or none, keys and tokens among them, so it shows none. A
    number or a choice of a field that may be in a repr is shown here.
    """
    try:
        return handler(given)
    except ValidationError as error:
        lines = [_told(cls, line) for line in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(error.title, lines, hide_input=True) from None


def _told(cls: type[BaseModel], line: ErrorDetails) -> InitErrorDetails:
    kind, place, given, said = line["type"], line["loc"], line["input"], line["msg"]
    ctx = line.get("ctx", {})
    # `errors()` of what is raised goes into logs and answers too, and has the input of each line
    shown: object = given if isinstance(given, int | float) else None
    if kind == "value_error":  # of a check of ours, which says all there is
        return InitErrorDetails(type=kind, loc=place, input=None, ctx=ctx)
    if len(place) == 1:  # what is deeper was told there
        name = str(place[0])
        field = cls.model_fields.get(name)
        if kind == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            said = f"There is no such option{f'; did you mean {near[0]}?' if near else ''}"
        if field is None or field.exclude:
            shown = None
        elif kind == "literal_error" and isinstance(given, str):
            shown = given
        if shown is not None:
            said += f", not {shown!r:.60}"
    told = PydanticCustomError(kind, "{said}", {**ctx, "said": said})
    return InitErrorDetails(type=told, loc=place, input=shown)
