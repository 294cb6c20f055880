"""What several constructors ask of an option: that it is a number, or a scorer."""

import math
from collections.abc import Iterable
from inspect import getattr_static
from numbers import Integral, Real
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError


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


def check_scorer(given: object, what: str) -> None:
    """Raise `InvalidInputError` unless it has what a `Scorer` has; no attribute is asked for.

    A remote scorer would ask its server for its scale, and a local one read its files for its name.
    """
    if any(getattr_static(given, part, None) is None for part in ("name", "scale", "score")):
        raise InvalidInputError(
            f"{what} is a {type(given).__name__}; it must have name, scale and score(pairs), as "
            "what load_scorer gives"
        )
