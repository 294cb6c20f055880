"""The arithmetic of a race: medians, ratios, agreement of scores, FLOPs. No clock, no library."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

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
    agreed = told_apart = 0.0
    # a row at a time: ten thousand scores have a hundred million pairs
    for score, expected in zip(scores, reference, strict=True):
        difference = expected - reference
        apart = np.abs(difference) > tolerance
        agreed += float((np.sign(difference) * np.sign(score - scores))[apart].sum())
        told_apart += float(apart.sum())
    return agreed / told_apart if told_apart else 1.0


def encoder_flops(hidden: int, layers: int, ffn: int, lengths: Sequence[int]) -> float:
    """FLOPs of a whole encoder over sequences of these lengths, two for a multiply and add.

    Every layer for every token and no padding: what the model asks for, whatever a library does.
    """
    return _layers_flops(layers, 4 * hidden * hidden + 2 * hidden * ffn, hidden, lengths)


def decoder_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> float:
    """The same of a Gemma with this `config.json`, without the vocabulary's product.

    Attention counts every pair of tokens though half of them are masked, as is usual.
    """
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    weights = hidden * (2 * queries + 2 * keys + 3 * ffn)
    return _layers_flops(config["num_hidden_layers"], weights, queries, lengths)


def _layers_flops(layers: int, weights: int, attention: int, lengths: Sequence[int]) -> float:
    """So many layers of so many weights, and of attention that wide over all heads."""
    products = 2 * weights * sum(lengths)
    mixing = 4 * attention * sum(length * length for length in lengths)
    return float(layers * (products + mixing))


def turns_within(seconds: float, each: Mapping[str, float], most: int) -> dict[str, int]:
    """How often each contender can take its turn, given what one of its turns is expected to take.

    The time is shared out evenly, everybody has at least one turn and nobody more than `most`.
    """
    return {
        name: max(1, min(most, int(seconds / len(each) / expected)))
        for name, expected in each.items()
    }
