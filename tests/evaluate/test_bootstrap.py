"""The bootstrap: cases counted by hand, scipy's figures, and how often an interval is right."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from bge_rerank_integrations.evaluate.bootstrap import (
    Bootstrap,
    Difference,
    difference,
    estimate,
    interval,
)


def both(
    first: list[float], second: list[float], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    columns = np.column_stack([first, second])
    means = Bootstrap(len(columns), resamples, seed).means(columns)
    return difference(columns[:, 0], columns[:, 1], means[:, 0], means[:, 1])


def test_a_resample_is_as_many_questions_as_there_are() -> None:
    counts = np.concatenate(list(Bootstrap(7, 1000, 3).draws()))
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.max() > 1
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


def test_two_questions_have_four_resamples() -> None:
    # gains 0 and 1: the mean is 0, 0.5, 0.5 or 1
    means = Bootstrap(2, 20_000, 0).means(np.array([[0.0], [1.0]]))[:, 0]
    assert set(means.tolist()) == {0.0, 0.5, 1.0}
    assert (means == 0).mean() == pytest.approx(0.25, abs=0.01)
    found = both([0.2, 0.2], [0.2, 1.2])
    assert (found.value, found.low, found.high) == (0.5, 0, 1)
    assert found.p_value == pytest.approx(2 * 0.25, abs=0.03)
    assert (found.wins, found.losses, found.ties) == (1, 0, 1)
    assert not found.is_clear


def test_a_gain_everywhere_has_the_smallest_p_there_is() -> None:
    found = both([0.0] * 12, [0.25] * 12, resamples=999)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    assert found.p_value == 2 / 1000
    assert found.is_clear
    worse = both([0.25] * 12, [0.0] * 12, resamples=999)
    assert (worse.value, worse.p_value, worse.losses) == (-0.25, 2 / 1000, 12)


def test_what_is_equal_is_never_a_difference() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(50).tolist()
    # the same sums in another order differ in their last bit
    found = both(values, [value + 1e-15 for value in values])
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert (found.wins, found.losses, found.ties) == (0, 0, 50)


def test_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(60)
    second = first + rng.normal(0.05, 0.2, 60)
    found = both(first.tolist(), second.tolist(), resamples=40_000)
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b, axis: (b - a).mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=40_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.value == pytest.approx((second - first).mean())
    assert found.low == pytest.approx(theirs.low, abs=1e-3)
    assert found.high == pytest.approx(theirs.high, abs=1e-3)


def test_the_interval_and_the_p_value_say_the_same() -> None:
    rng = np.random.default_rng(5)
    for shift in np.linspace(-0.1, 0.1, 21):
        gains = rng.normal(shift, 0.2, 40)
        found = both([0.0] * 40, gains.tolist(), resamples=2000)
        if abs(found.p_value - 0.05) > 0.005:
            assert found.is_clear == (found.p_value < 0.05)


def test_the_interval_holds_the_truth_nearly_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(400):
        values = rng.normal(0.3, 1, (40, 1))
        low, high = interval(Bootstrap(40, 500, trial).means(values)[:, 0])
        held += low <= 0.3 <= high
    assert 0.90 <= held / 400 <= 0.97


def test_the_same_seed_gives_the_same_figures() -> None:
    values = np.random.default_rng(0).random((30, 2))
    again = [Bootstrap(30, 500, 4).means(values) for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert (Bootstrap(30, 500, 5).means(values) != again[0]).any()
    alone = Bootstrap(30, 500, 4).means(values[:, 1:])
    assert alone[:, 0] == pytest.approx(again[0][:, 1]), (
        "columns of the same draws, together or not"
    )


def test_the_value_is_the_mean_whatever_the_resamples() -> None:
    found = estimate(np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.2, 0.3]))
    assert found.value == 0.5
    assert 0.1 <= found.low < found.high <= 0.3


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=30),
    st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    st.randoms(use_true_random=False),
)
def test_covering_is_the_smallest_number_that_covers(
    values: list[int], share: float, random: Random
) -> None:
    owners = [random.randrange(5) for _ in values]
    found = Bootstrap(5, 100, 0).covering(np.array(values, dtype=float), np.array(owners), share)
    enough = [v for v in values if sum(w <= v for w in values) >= share * len(values) - 1e-9]
    assert found.value == min(enough)
    assert min(values) <= found.low <= found.high <= max(values)


def test_covering_resamples_questions_and_not_values() -> None:
    # question 0 has a hundred values of 9: in half of the resamples it decides, in a quarter alone
    values = np.array([9.0] * 100 + [1.0])
    found = Bootstrap(2, 4000, 0).covering(values, np.array([0] * 100 + [1]), 0.95)
    assert (found.value, found.low, found.high) == (9, 1, 9)
