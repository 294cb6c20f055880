"""The races' texts are what they say, and their arithmetic is right. Nothing is timed here."""

import math

import numpy as np
import pytest

from benchmarks.measures import encoder_flops, order_agreement, quantile, ratios, sigmoid
from benchmarks.workloads import LONGEST, Texts, read_lines


def texts(seed: int = 0) -> Texts:
    """Every word is one token, and a pair has four control tokens."""
    return Texts(lambda word: 1, 4, seed=seed)


def test_a_workload_has_the_passages_and_lengths_it_says() -> None:
    drawn = texts().workload("w", 200, mean=80, spread=0.45)
    words = [len(passage.split()) for passage in drawn.passages]
    around = 4 + len(drawn.query.split())
    assert len(drawn.pairs) == 200
    assert all(query == drawn.query for query, _ in drawn.pairs)
    assert drawn.query in read_lines("queries")
    assert drawn.lengths == tuple(around + number for number in words)
    # the mean of 200 draws is off by 80 * 0.47 / sqrt(200) = 2.7 on average
    assert sum(words) / 200 == pytest.approx(80, abs=9)
    assert min(words) < 50
    assert 150 < max(words) <= LONGEST


def test_no_spread_makes_all_passages_equal() -> None:
    drawn = texts().workload("w", 5, mean=30, spread=0)
    assert [len(passage.split()) for passage in drawn.passages] == [30] * 5


def test_equal_pairs_fill_their_length() -> None:
    assert texts().equal_pairs(3, pair_tokens=64).lengths == (64, 64, 64)
    # words of two tokens: one token may be left over
    two = Texts(lambda word: 2, 4).equal_pairs(3, pair_tokens=65)
    assert two.lengths == (64, 64, 64)


def test_the_seed_alone_decides_the_texts() -> None:
    assert texts().workload("w", 9, mean=20, spread=0.4) == texts().workload(
        "w", 9, mean=20, spread=0.4
    )
    other = texts(seed=1).workload("w", 9, mean=20, spread=0.4)
    assert other.passages != texts().workload("w", 9, mean=20, spread=0.4).passages


def test_ratios_are_of_medians_to_ours() -> None:
    seconds = {"ours": [2.0, 9.0, 1.0], "other": [5.0, 4.0, 100.0]}
    assert ratios(seconds, "ours") == {"ours": 1.0, "other": 2.5}
    # of an even number of rounds the median is the middle of the two in the middle
    assert ratios({"ours": [1.0, 3.0], "other": [3.0, 5.0]}, "ours")["other"] == 2.0
    assert ratios({"other": [1.0]}, "ours") == {}


def test_quantiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [quantile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]


def test_order_agreement_is_kendall_s_tau() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    assert order_agreement(reference * 10, reference) == 1.0
    assert order_agreement(-reference, reference) == -1.0
    # one of six pairs the other way round: (5 - 1) / 6
    swapped = np.array([2.0, 1.0, 3.0, 4.0])
    assert order_agreement(swapped, reference) == pytest.approx(4 / 6)
    # passages that the reference scores alike have no order to agree on
    near = np.array([1.0, 1.00001, 3.0, 4.0])
    assert order_agreement(swapped, near, tolerance=1e-4) == 1.0
    assert order_agreement(swapped, np.ones(4)) == 1.0


def test_flops_of_a_layer_by_hand() -> None:
    # 5 tokens through four 2x2 and two 2x3 matrices, two operations each; attention of lengths
    # 2 and 3: scores and mixing, 2 * 2 * hidden for each of the 4 + 9 pairs of tokens
    one_layer = 2 * 5 * (4 * 4 + 2 * 6) + 2 * 2 * 2 * (4 + 9)
    assert encoder_flops(2, 1, 3, [2, 3]) == one_layer
    assert encoder_flops(2, 7, 3, [2, 3]) == 7 * one_layer


def test_a_logit_as_a_probability() -> None:
    assert sigmoid(np.array([0.0, math.log(3)])).tolist() == pytest.approx([0.5, 0.75])
