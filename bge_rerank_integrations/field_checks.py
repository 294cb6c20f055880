"""Checks of an adapter's fields: an address shows no secret, a ready scorer is one."""

from typing import Any

from bge_rerank_integrations.remote.address import is_address, read_address
from bge_rerank_integrations.types import Scorer


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
    """The scorer, or None; raises `ValueError` for what has not all that a scorer has."""
    if scorer is not None and not isinstance(scorer, Scorer):
        raise ValueError(
            f"scorer is a {type(scorer).__name__} without name, scale and score(pairs)"
        )
    return scorer
