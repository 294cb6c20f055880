"""Intervals and p-values: cases counted by hand, scipy's exact test, and a coverage simulation."""

import numpy as np
import pytest
from scipy import stats

from bge_rerank_integrations.evaluate.statistics import Array, Difference, Resampling


def both(first: list[float], second: list[float], resamples: int = 5000) -> Difference:
    columns = (np.array(values)[:, None] for values in (first, second))
    (found,) = Resampling(resamples, 0).differences(*columns)
    return found


def test_a_gain_everywhere_has_the_smallest_p_value() -> None:
    found = both([0.0] * 12, [0.25] * 12, resamples=999)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
    assert found.p_value == 2 / 1000
    assert found.is_clear
    assert found.is_gain
    worse = both([0.25] * 12, [0.0] * 12, resamples=999)
    assert (worse.value, worse.p_value, worse.losses) == (-0.25, 2 / 1000, 12)
    assert worse.is_clear
    assert not worse.is_gain
    assert str(worse) == "-0.250 [-0.250, -0.250], p = 0.002"


@pytest.mark.parametrize("changed", [0, 1, 9, 10])
def test_below_ten_changed_questions_there_is_no_interval(changed: int) -> None:
    found = both([0.0] * 100, [0.5] * changed + [0.0] * (100 - changed))
    assert (found.wins, found.losses, found.ties) == (changed, 0, 100 - changed)
    assert found.value == pytest.approx(changed / 200)
    assert (found.low is None) == (found.high is None) == (changed < 10)
    assert found.is_clear == (changed == 10)
    said = f"({changed} questions changed: too few to tell)"
    assert (said in str(found)) == (changed < 10)


def test_rounding_is_no_difference() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    found = both(values, [value + 1e-15 for value in values])
    assert (found.value, found.p_value, found.ties) == (0, 1, 50)


@pytest.mark.parametrize("shift", [0, 0.05, 0.1, -0.2])
def test_the_p_value_is_that_of_all_sign_flips(shift: float) -> None:
    gains = np.random.default_rng(3).normal(shift, 0.2, 11)
    exact = stats.permutation_test(
        (gains, np.zeros(11)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert len(exact.null_distribution) == 2**11
    found = both([0.0] * 11, gains.tolist(), resamples=20_000)
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.01)


def test_the_interval_is_scipys_percentile_interval_at_the_widened_level() -> None:
    gains = np.random.default_rng(1).normal(0.05, 0.2, 60)
    level = 2 * stats.norm.cdf(np.sqrt(60 / 59) * stats.t.ppf(0.975, 59)) - 1
    assert 0.95 < level < 0.97
    theirs = stats.bootstrap(
        (gains,), np.mean, method="percentile", confidence_level=level, n_resamples=40_000, rng=2
    ).confidence_interval
    found = both([0.0] * 60, gains.tolist(), resamples=40_000)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def rank_changes(random: np.random.Generator, size: tuple[int, int]) -> Array:
    """Differences of nDCG@10 where one passage answers and four questions in ten do not change."""
    before, after = random.geometric(0.2, size), random.geometric(0.3, size)
    after = np.where(random.random(size) < 0.4, before, after)
    first, second = (np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0) for ranks in (before, after))
    return second - first


@pytest.mark.parametrize("questions", [20, 50])
def test_the_interval_covers_the_true_mean_and_the_test_keeps_its_level(questions: int) -> None:
    random = np.random.default_rng(7)
    truth = rank_changes(random, (1000, 1000)).mean()
    trials = rank_changes(random, (1000, questions))
    flips = random.choice((-1.0, 1.0), (questions, 1000))
    resampling = Resampling(400, 1)
    zeros = np.zeros((questions, 1000))
    covered = [
        found.low <= truth <= found.high
        for found in resampling.differences(zeros, trials.T)
        if found.low is not None and found.high is not None
    ]
    assert len(covered) > 600
    assert 0.93 <= np.mean(covered) <= 0.98
    null = resampling.differences(zeros, trials.T * flips)
    assert np.mean([found.p_value < 0.05 for found in null]) <= 0.065


def test_the_same_seed_gives_the_same_figures() -> None:
    values = np.random.default_rng(0).random((30, 2))
    again = [Resampling(500, 4).estimates(values) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != Resampling(500, 5).estimates(values)
    assert again[0][0].value == pytest.approx(values[:, 0].mean())
    assert again[0][0].low < again[0][0].value < again[0][0].high


def test_one_question_has_no_spread() -> None:
    (found,) = Resampling(100, 0).estimates(np.array([[0.3]]))
    assert (found.value, found.low, found.high) == (0.3, 0.3, 0.3)
