"""Recommended settings: chosen by their rules, and judged on questions that did not choose them."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bge_rerank_integrations.evaluate.recommend import (
    FOLDS,
    Setting,
    choose_depth,
    choose_threshold,
    choose_top_n,
    compare_gap,
    f1_by_length,
)
from bge_rerank_integrations.evaluate.statistics import Array, Resampling

SECOND, FIFTH = 1 / math.log2(3), 1 / math.log2(6)
"""nDCG of a question whose one answer is second, or fifth."""


def test_the_depth_is_the_smallest_that_has_95_of_100_of_the_gain() -> None:
    # the answer moves to the top from place 2 for 18 questions, and from place 5 for 2
    gains = np.array([[0, 1 - SECOND, 1 - SECOND]] * 18 + [[0, 0, 1 - FIFTH]] * 2)
    for chosen, depth in ((gains, 5), (gains[:18], 2)):
        found = choose_depth((1, 2, 5), chosen)
        assert found is not None
        assert dataclasses.astuple(found) == (depth, 1, pytest.approx(1))
    assert choose_depth((1, 2, 5), -gains) is None
    assert choose_depth((1, 2, 5), np.zeros((20, 3))) is None


def test_the_top_n_leaves_an_answer_to_95_of_100() -> None:
    # number 0.95 * 40 of 39 in order
    assert choose_top_n(np.array([1.0] * 38 + [5.0])) == Setting(1, 38 / 39, 38 / 39)
    found = choose_top_n(np.array([1.0] * 37 + [5.0] * 2))
    assert found is not None
    assert (found.value, found.kept) == (5, 1)
    assert choose_top_n(np.array([1.0] * (FOLDS - 1))) is None
    assert choose_top_n(np.empty(0)) is None


def test_what_is_held_out_is_judged_with_what_the_others_chose() -> None:
    ranks = np.array([1.0] * 38 + [2.0] * 3)
    folds = np.array_split(np.random.default_rng(0).permutation(41), FOLDS)
    kept = 0
    for fold in folds:
        others = np.sort(np.delete(ranks, fold))
        kept += np.sum(
            ranks[fold] <= others[min(len(others), math.ceil(0.95 * (len(others) + 1))) - 1]
        )
    assert choose_top_n(ranks) == Setting(2, 1, kept / 41)


def test_a_held_out_share_is_that_of_new_questions() -> None:
    random = np.random.default_rng(5)
    promised, held_out, true = [], [], []
    for _ in range(200):
        ranks = random.geometric(0.3, 100).astype(float)
        found = choose_top_n(ranks)
        assert found is not None
        promised.append(found.kept)
        held_out.append(found.held_out)
        true.append(1 - 0.7**found.value)
    assert np.mean(promised) > np.mean(true) + 0.004, "on its own questions it looks better"
    assert np.mean(held_out) == pytest.approx(np.mean(true), abs=0.004)


@pytest.mark.parametrize("questions", [19, 25, 60])
def test_a_top_n_covers_95_of_100_new_questions_also_if_few_choose_it(questions: int) -> None:
    random, covered = np.random.default_rng(6), []
    for _ in range(2000):
        found = choose_top_n(random.geometric(0.1, questions).astype(float))
        assert found is not None
        covered.append(1 - 0.9**found.value)
    assert 0.95 <= np.mean(covered) < 0.975


def test_f1_counts_all_that_is_relevant_also_what_was_not_found() -> None:
    order = np.array([True, False, True])
    assert f1_by_length(order, 2, 4) == pytest.approx([2 / 3, 1 / 2, 4 / 5, 4 / 5])
    assert f1_by_length(order, 5, 2) == pytest.approx([2 / 6, 2 / 7])
    assert f1_by_length(np.array([], dtype=bool), 1, 2).tolist() == [0, 0]


def test_a_gap_is_compared_with_a_fixed_number_of_the_same_mean() -> None:
    # of two kinds of questions one has its answer first, the other has two; so 1.5 on average
    f1 = np.array([[1, 2 / 3], [2 / 3, 1]] * 20)
    found = compare_gap(np.array([1, 2] * 20), f1, Resampling(500, 0))
    assert (found.length, found.f1) == (1.5, 1)
    assert found.fixed_f1 == pytest.approx(5 / 6)
    assert found.gain.is_gain
    found = compare_gap(np.array([2, 1] * 20), f1, Resampling(500, 0))
    assert (found.length, found.f1) == pytest.approx((1.5, 2 / 3))
    assert found.gain.is_clear
    assert not found.gain.is_gain


def test_a_gap_recommended_on_some_questions_gains_on_others() -> None:
    random, gains = np.random.default_rng(2), []
    for share in np.linspace(0, 1, 60):
        # the gap finds the better of two lengths for this share of the questions
        one = random.random(200) < 0.5
        f1 = np.where(one[:, None], [1, 2 / 3], [2 / 3, 1])
        lengths = np.where((random.random(200) < share) == one, 1, 2)
        here, there = (
            compare_gap(lengths[half], f1[half], Resampling(200, 0))
            for half in (slice(100), slice(100, 200))
        )
        assert here.gain.is_gain or share < 0.8
        if here.gain.is_gain:
            gains.append(there.gain.value)
    assert 15 < len(gains) < 35
    assert min(gains) > -0.05
    assert np.mean([gain > 0 for gain in gains]) > 0.95


SCORES = st.lists(st.floats(-20, 20), max_size=4).map(np.array)


@example([(np.zeros(int(place in (0, 5))), np.empty(0)) for place in range(8)])
@given(st.lists(st.tuples(SCORES, SCORES), min_size=FOLDS, max_size=8))
def test_the_threshold_keeps_and_drops_what_it_says(questions: list[tuple[Array, Array]]) -> None:
    relevant, others = [list(scores) for scores in zip(*questions, strict=True)]
    threshold, dropped = choose_threshold(relevant, others)
    good, rest = np.concatenate(relevant), np.concatenate(others)
    if threshold is None:
        folds = np.array_split(np.random.default_rng(0).permutation(len(relevant)), FOLDS)
        with_some = sum(any(relevant[question].size for question in fold) for fold in folds)
        assert with_some <= 1, "no fold leaves any to choose by"
        return
    assert np.mean(good >= threshold.value) == threshold.kept >= 0.95
    higher = [score for score in good if score > min(good[good >= threshold.value])]
    assert len(higher) < 0.95 * (len(good) + 1), "a higher one would not do"
    assert 0 <= threshold.held_out <= 1
    assert (dropped is None) == (not rest.size)
    assert dropped is None or 0 <= dropped <= 1
