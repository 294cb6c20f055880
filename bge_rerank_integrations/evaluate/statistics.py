"""Confidence intervals and p-values of means over questions, computed by scipy.

Intervals are percentile bootstrap intervals over questions, with the level widened for small
samples (T. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician
69, 2015). A p-value is that of a two-sided sign-flip test: without an effect, each question's
difference is as likely to have the opposite sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

CONFIDENCE = 0.95

FEWEST_CHANGED = 10
"""With fewer changed questions a bootstrap interval is far too narrow, so none is given."""

_CELLS = 4_000_000
"""Numbers held at once while resampling, to bound memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of second minus first over the same questions.

    `low` and `high` are the ends of the 95% interval, None if fewer than 10 questions changed;
    `p_value` is two-sided; `wins`, `losses` and `ties` count questions.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float
    wins: int
    losses: int
    ties: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0 and the p-value is below 0.05."""
        if self.low is None or self.high is None:
            return False
        return (self.low > 0 or self.high < 0) and self.p_value < 1 - CONFIDENCE

    @property
    def is_gain(self) -> bool:
        """Whether the second is measurably better."""
        return self.is_clear and self.value > 0

    def __str__(self) -> str:
        if self.low is None:
            changed = self.wins + self.losses
            return f"{self.value:+.3f} ({changed} questions changed: too few to tell)"
        p = "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.3f}"
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p {p}"


@dataclass(frozen=True, slots=True)
class Resampling:
    """How many resamples of the questions to draw, and the seed of the draws."""

    resamples: int
    seed: int

    def estimates(self, columns: Array) -> list[Estimate]:
        """The mean of each column of [questions, columns]."""
        values = columns.T
        lows, highs = self._intervals(values)
        means = values.mean(axis=1)
        return [Estimate(*map(float, row)) for row in zip(means, lows, highs, strict=True)]

    def differences(self, first: Array, second: Array) -> list[Difference]:
        """`second - first` for each column of [questions, columns]."""
        gains = (second - first).T
        gains[np.isclose(gains, 0, atol=1e-12)] = 0  # equal values may differ in the last bit
        lows, highs = self._intervals(gains)
        found = []
        for row, low, high in zip(gains, lows, highs, strict=True):
            wins, losses = int((row > 0).sum()), int((row < 0).sum())
            enough = wins + losses >= FEWEST_CHANGED
            found.append(
                Difference(
                    float(row.mean()),
                    float(low) if enough else None,
                    float(high) if enough else None,
                    self._sign_flip_p(row[row != 0]),
                    wins,
                    losses,
                    len(row) - wins - losses,
                )
            )
        return found

    def _intervals(self, values: Array) -> tuple[Sequence[float], Sequence[float]]:
        questions = values.shape[1]
        if questions < 2:
            return values[:, 0].tolist(), values[:, 0].tolist()
        # the level at which a normal interval of the uncorrected deviation is Student's
        t = stats.t.ppf((1 + CONFIDENCE) / 2, questions - 1)
        level = 2 * stats.norm.cdf(np.sqrt(questions / (questions - 1)) * t) - 1
        found = stats.bootstrap(
            (values,),
            np.mean,
            axis=1,
            vectorized=True,
            method="percentile",
            confidence_level=level,
            n_resamples=self.resamples,
            batch=max(1, _CELLS // values.size),
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return found.low.tolist(), found.high.tolist()

    def _sign_flip_p(self, changed: Array) -> float:
        """The p-value of the mean of the nonzero differences."""
        if len(changed) < 2:
            return 1.0
        random = np.random.default_rng(self.seed)
        found = stats.monte_carlo_test(
            changed,
            lambda size: changed * random.choice((-1.0, 1.0), size),
            np.mean,
            vectorized=True,
            n_resamples=self.resamples,
            batch=max(1, _CELLS // len(changed)),
        )
        return float(found.pvalue)
