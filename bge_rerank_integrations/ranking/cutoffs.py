"""Cut-off rules: how many of the ranked passages to keep."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from bge_rerank_integrations.options import CutoffOptions
from bge_rerank_integrations.ranking.calibration import Calibration, ranks

logger = logging.getLogger("bge_rerank_integrations")


@dataclass(frozen=True, slots=True)
class Kept:
    """How many passages are kept, and the rule that decided it; None if all are kept."""

    number: int
    reason: str | None


def keep(
    raw: Sequence[float],
    cutoff: CutoffOptions,
    *,
    limit: int | None,
    calibration: Calibration | None,
    count_tokens: Callable[[int], int],
) -> Kept:
    """Apply the rules to raw scores in descending order; `limit` is the maximum to keep.

    `count_tokens` counts the tokens of the passage at a position of the ranking.
    """
    kept = Kept(len(raw), None)
    if calibration is not None and raw:
        if (minimum := cutoff.min_probability) is not None:
            likely = map(calibration.probability, raw, ranks(np.array(raw)).tolist())
            number = sum(1 for _ in takewhile(lambda one: one >= minimum, likely))
            best = f"the best has {calibration.probability(raw[0]):.3f}"
            kept = _shortened(kept, number, f"min_probability {minimum}", best)
        if cutoff.target_recall is not None:
            threshold = calibration.threshold(cutoff.target_recall)
            number = sum(score >= threshold for score in raw)
            rule = f"target_recall {cutoff.target_recall} (raw score {threshold:.4g})"
            kept = _shortened(kept, number, rule, f"the best scores {raw[0]:.4g}")
    if limit is not None:
        kept = _shortened(kept, limit, f"top_n {limit}", "")
    if cutoff.min_n is not None:
        gap = largest_gap(raw, cutoff.min_n, kept.number)
        kept = _shortened(kept, gap, "the largest gap between two scores", "")
    if cutoff.token_budget is not None:
        number = within_budget(kept.number, cutoff.token_budget, count_tokens)
        if kept.number and not number:
            logger.warning(
                "The best passage has %d tokens, more than the token_budget of %d: %s",
                count_tokens(0),
                cutoff.token_budget,
                "always_keep_best keeps it alone"
                if cutoff.always_keep_best
                else "nothing is kept; always_keep_best=True keeps it",
            )
            number = int(cutoff.always_keep_best)
        kept = _shortened(
            kept, number, f"token_budget {cutoff.token_budget}", "the best alone has more"
        )
    return kept


def _shortened(kept: Kept, number: int, rule: str, why_none: str) -> Kept:
    if number >= kept.number:
        return kept
    return Kept(number, f"{rule} leaves {number}" if number else f"{rule} leaves none: {why_none}")


def largest_gap(raw: Sequence[float], low: int, high: int) -> int:
    """The first n, from `low` to `high`, with the largest raw[n - 1] - raw[n]; all if none."""
    best, widest = min(high, len(raw)), 0.0
    for number in range(low, min(high, len(raw) - 1) + 1):
        gap = raw[number - 1] - raw[number]
        if gap > widest:
            best, widest = number, gap
    return best


def within_budget(number: int, budget: int, count_tokens: Callable[[int], int]) -> int:
    """How many of the first `number` passages fit into the token budget together."""
    for place in range(number):
        budget -= count_tokens(place)
        if budget < 0:
            return place
    return number
