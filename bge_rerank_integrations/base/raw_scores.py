"""A scorer's raw scores: held to its contract, and put on the scale that is shown."""

import math
from collections.abc import Sequence
from inspect import getattr_static

import numpy as np

from bge_rerank_integrations.errors import (
    InvalidInputError,
    NonFiniteScoreError,
    ScorerContractError,
    ScoringFailed,
)
from bge_rerank_integrations.types import FloatArray, Pair, Scale, Scorer


def check_scorer(given: object, what: str) -> None:
    """Raise `InvalidInputError` unless it has what a `Scorer` has; no attribute is asked for.

    A remote scorer would ask its server for its scale, and a local one read its files for its name.
    """
    if any(getattr_static(given, part, None) is None for part in ("name", "scale", "score")):
        raise InvalidInputError(
            f"{what} is a {type(given).__name__}; it must have name, scale and score(pairs), as "
            "what load_scorer gives"
        )


def checked_scores(scorer: Scorer, pairs: Sequence[Pair]) -> FloatArray:
    """The scorer's raw scores, which must be one finite number per pair.

    Raises `ScorerContractError` or `NonFiniteScoreError` where they are not.
    """
    raw = np.asarray(scorer.score(pairs), dtype=np.float32)
    if raw.shape != (len(pairs),):
        raise ScorerContractError(
            f"{scorer.name} gave scores of shape {raw.shape} for {len(pairs)} pairs"
        )
    if not np.isfinite(raw).all():
        index = int(np.flatnonzero(~np.isfinite(raw))[0])
        raise NonFiniteScoreError(
            f"{scorer.name} gave {raw[index]} for the pair at position {index}"
        )
    return raw


def checked_partial(error: ScoringFailed, pairs: int) -> FloatArray:
    """What a failure left scored; where that cannot be right, nothing."""
    partial = error.partial
    if partial is None:
        return np.full(pairs, np.nan, dtype=np.float32)
    partial = np.asarray(partial, dtype=np.float32)
    if partial.shape != (pairs,) or np.isinf(partial).any():
        raise ScorerContractError(
            f"a {type(error).__name__} held partial scores of shape {partial.shape} for {pairs} "
            "pairs, or infinite ones"
        ) from error
    return partial


def show_score(raw_score: float, scale: Scale, *, normalize: bool) -> float:
    """A logit's sigmoid in double precision if `normalize`; anything else unchanged."""
    if scale != "logit" or not normalize:
        return raw_score
    # exp of a large positive number overflows, so each sign takes the form that does not
    if raw_score >= 0:
        return 1.0 / (1.0 + math.exp(-raw_score))
    odds = math.exp(raw_score)
    return odds / (1.0 + odds)
