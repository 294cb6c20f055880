"""The arithmetic of a race: medians, ratios, agreement of scores, FLOPs. No clock, no library."""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def ratios(seconds: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """How many times as long as `ours` each contender took: median over median of its rounds.

    Empty where `ours` did not run.
    """
    if ours not in seconds:
        return {}
    own = statistics.median(seconds[ours])
    return {name: statistics.median(rounds) / own for name, rounds in seconds.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits as probabilities."""
    return 1 / (1 + np.exp(-logits))


def order_agreement(
    scores: NDArray[np.float64], reference: NDArray[np.float64], *, tolerance: float = 0.0
) -> float:
    """Kendall's tau over the pairs that the reference tells apart by more than `tolerance`.

    1 where both order every such pair alike, -1 where they order each the other way; 1 where there
    is none.
    """
    expected = reference[:, None] - reference
    told_apart = np.abs(expected) > tolerance
    if not told_apart.any():
        return 1.0
    given = np.sign(scores[:, None] - scores)
    return float((np.sign(expected) * given)[told_apart].mean())


def encoder_flops(hidden: int, layers: int, ffn: int, lengths: Sequence[int]) -> float:
    """FLOPs of a whole encoder over sequences of these lengths, two for a multiply and add.

    Every layer for every token and no padding: what the model asks for, whatever a library does.
    """
    tokens = sum(lengths)
    products = 2 * tokens * (4 * hidden * hidden + 2 * hidden * ffn)
    attention = 4 * hidden * sum(length * length for length in lengths)
    return float(layers * (products + attention))
