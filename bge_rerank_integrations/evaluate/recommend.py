"""Recommended settings: candidates to rerank, results to keep, and where to end the results.

A setting looks too good on the questions that chose it. So each setting is also cross-validated:
each fifth of the questions is judged with the setting that the other four fifths chose.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.evaluate.statistics import Array, Difference, Resampling

SHARE = 0.95
"""The share that a recommendation keeps: of the gain, the questions, the relevant candidates."""

STEPS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
FOLDS = 5

Questions = NDArray[np.intp]
"""Positions of questions."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value chosen on all questions, and the share that it keeps.

    `kept` is the share on the questions that chose the value, `held_out` the share to expect on
    other questions. `Recommendation` says what each setting keeps a share of.
    """

    value: float
    kept: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Results that end at the largest score gap (`min_n=1`), against a fixed number of results.

    `length` is the mean number of results that the gap keeps, at most `top_n`, and `f1` the mean F1
    of a question's results. `fixed_f1` is that of `length` results for every question, interpolated
    between two whole numbers. `gain` is the difference. Neither rule is fitted to the questions, so
    no question needs to be held out.
    """

    length: float
    f1: float
    fixed_f1: float
    gain: Difference


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Settings for one reranker that measurably helps; None where the data cannot choose one.

    `depth` is the smallest number of candidates to rerank that has 95% of the best depth's gain.
    `top_n` is the smallest number of results that has a relevant passage for 95% of the questions
    whose reranked candidates have one. `score_threshold`, on the shown scale, is the highest that
    95% of the relevant reranked candidates reach. Both allow for the number of observations, so
    that 95% is expected on new questions, from 19 on. `dropped` is the held-out share of the other
    candidates, unjudged relevant ones included, that the threshold drops. `gap` is None for a
    `top_n` of 1.
    """

    depth: Setting | None
    top_n: Setting | None
    score_threshold: Setting | None
    dropped: float | None
    gap: Gap | None

    @property
    def options(self) -> dict[str, float]:
        """The options of `BGERerank` and `Reranker` that are recommended."""
        found = {"top_n": self.top_n, "score_threshold": self.score_threshold}
        options = {name: setting.value for name, setting in found.items() if setting is not None}
        return options | ({"min_n": 1} if self.gap and self.gap.gain.is_gain else {})


def depths_to_try(longest: int) -> tuple[int, ...]:
    """Round numbers below the length of the longest candidate list, and that length."""
    return (*(step for step in STEPS if step < longest), longest)


def choose_depth(depths: Sequence[int], gains: Array) -> Setting | None:
    """See `Recommendation.depth`; `gains` over the first stage are [questions, depths]."""
    best = int(np.argmax(gains.mean(axis=0)))

    def choose(questions: Questions) -> int | None:
        means = gains[questions].mean(axis=0)
        enough = means >= SHARE * means.max() - 1e-12
        return int(np.argmax(enough)) if means.max() > 1e-12 else None

    return _validated(
        choose,
        lambda column, questions: (gains[questions, column].sum(), gains[questions, best].sum()),
        len(gains),
        shown=lambda column: depths[column],
    )


def choose_top_n(ranks: Array) -> Setting | None:
    """See `Recommendation.top_n`; `ranks` are those of each question's first relevant result."""
    return _validated(
        lambda questions: _covering(ranks[questions]),
        lambda top_n, questions: (float(np.sum(ranks[questions] <= top_n)), len(questions)),
        len(ranks),
        shown=int,
    )


def choose_threshold(
    relevant: Sequence[Array], others: Sequence[Array]
) -> tuple[Setting | None, float | None]:
    """`score_threshold` and `dropped` of a `Recommendation`.

    Both arguments hold each question's shown scores, of its relevant and of its other candidates.
    """

    def choose(questions: Questions) -> float | None:
        covered = _covering(-_joined(relevant, questions))
        return None if covered is None else -covered

    def reached(scores: Sequence[Array]) -> Setting | None:
        def judge(threshold: float, questions: Questions) -> tuple[float, float]:
            joined = _joined(scores, questions)
            return float(np.sum(joined >= threshold)), len(joined)

        return _validated(choose, judge, len(scores), shown=short)

    def short(threshold: float) -> float:
        every = np.concatenate([*relevant, *others])
        below = every[every < threshold].tolist()
        return float(round_down(threshold, above=max(below, default=None)))

    passed = reached(others)
    return reached(relevant), None if passed is None else 1 - passed.held_out


def f1_by_length(relevant: NDArray[np.bool_], every: int, longest: int) -> Array:
    """F1 of the first 1, 2, ... `longest` results, if `every` passages are relevant."""
    kept = np.minimum(np.arange(1, longest + 1), len(relevant))
    found: Array = np.append(0, np.cumsum(relevant))[kept] * 2 / (kept + every)
    return found


def compare_gap(lengths: Questions, f1: Array, resampling: Resampling) -> Gap:
    """See `Gap`; `lengths` are each question's, `f1` is [questions, lengths from 1]."""
    length, numbers = float(lengths.mean()), np.arange(1, f1.shape[1] + 1)
    cut = f1[np.arange(len(f1)), lengths - 1]
    fixed = np.array([np.interp(length, numbers, row) for row in f1])
    (gain,) = resampling.differences(fixed[:, None], cut[:, None])
    return Gap(length, float(cut.mean()), float(fixed.mean()), gain)


def round_down(number: float, *, above: float | None = None) -> str:
    """Round down to four significant digits, so that a threshold still keeps what it should.

    A number between 0 and 1 has four digits of its distance to the nearer end, where sigmoids
    crowd. More digits are added until the result exceeds `above`, which it must drop.
    """
    if number == 0:
        return "0"
    distance = min(number, 1 - number) if 0 < number < 1 else abs(number)
    for digits in itertools.count(3 - math.floor(math.log10(distance))):
        rounded = Decimal(str(number)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR)
        if above is None or float(rounded) > above:
            break
    return f"{rounded:f}"


def _validated(
    choose: Callable[[Questions], Any],
    judge: Callable[[Any, Questions], tuple[float, float]],
    number: int,
    *,
    shown: Callable[[Any], float],
) -> Setting | None:
    """The setting that all questions choose, judged on them and by cross-validation.

    `judge` gives a part and its whole, which are added up over the folds.
    """
    every = np.arange(number)
    if number < FOLDS or (chosen := choose(every)) is None:
        return None
    sums = np.zeros(2)
    for fold in np.array_split(np.random.default_rng(0).permutation(number), FOLDS):
        if (setting := choose(np.setdiff1d(every, fold))) is not None:
            sums += judge(setting, fold)
    part, whole = judge(chosen, every)
    if not whole or not sums[1]:
        return None
    return Setting(shown(chosen), float(part / whole), float(sums[0] / sums[1]))


def _covering(values: Array) -> float | None:
    """The smallest value that, by these ones, 95% of new values do not exceed; None of no values.

    With n values that is number 0.95 (n + 1) in order, as in split conformal prediction. Number
    0.95 n would promise too much: with 25 questions it covers 0.92 of others.
    """
    # the slack absorbs the rounding of the product
    place = min(len(values), int(np.ceil(SHARE * (len(values) + 1) - 1e-9))) - 1
    return float(np.sort(values)[place]) if len(values) else None


def _joined(scores: Sequence[Array], questions: Questions) -> Array:
    return np.concatenate([scores[question] for question in questions] or [np.empty(0)])
