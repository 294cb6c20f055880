"""How sure a mean over questions is: the paired percentile bootstrap.

Questions are drawn anew, with replacement, as many as there are, and every figure is computed again
on the same draw: so two rerankers are compared on the same questions each time. After B. Efron and
R. Tibshirani, An Introduction to the Bootstrap (1993): chapter 13 for the percentile interval,
chapter 15.4 for the test that goes with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
"""The share of resamples that an interval holds."""

_CELLS = 4_000_000
"""Numbers of a chunk of draws, so that many questions do not take many gigabytes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more the second has than the first, over the same questions.

    `p_value` is two-sided: how often a resample shows no gain, or no loss, whichever is rarer,
    doubled. `wins`, `losses` and `ties` count questions.
    """

    value: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int
    ties: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """`resamples` draws of as many `questions`, the same for the same three numbers.

    So figures that are computed apart are still of the same draws.
    """

    questions: int
    resamples: int
    seed: int

    def draws(self) -> Iterator[Array]:
        """How often each question is drawn: chunks of [resamples, questions]."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, _CELLS // self.questions)
        shares = np.full(self.questions, 1 / self.questions)
        for start in range(0, self.resamples, rows):
            size = min(rows, self.resamples - start)
            yield generator.multinomial(self.questions, shares, size=size).astype(np.float64)

    def means(self, values: Array) -> Array:
        """The means of the columns of [questions, columns]: [resamples, columns]."""
        return np.concatenate([counts @ values / self.questions for counts in self.draws()])

    def covering(self, values: Array, owners: NDArray[np.intp], share: float) -> "Estimate":
        """The smallest number that at least `share` of the values do not exceed.

        Values belong to questions, `owners`, and come as often as their question. A resample
        without any value does not count. There must be a value.
        """
        order = np.argsort(values, kind="stable")
        ordered, owned = values[order], owners[order]
        (now,) = _covering(ordered, np.ones((1, len(values))), share)
        chunks = [_covering(ordered, counts[:, owned], share) for counts in self.draws()]
        return Estimate(float(now), *interval(np.concatenate(chunks)))


def _covering(ordered: Array, weights: Array, share: float) -> Array:
    reached = np.cumsum(weights, axis=1)
    whole = reached[:, -1]
    # the weights are whole numbers, so the slack only mends the product's rounding
    places = (reached >= (share * whole - 1e-9)[:, None]).argmax(axis=1)
    return np.asarray(np.where(whole > 0, ordered[places], np.nan))


def interval(resampled: Array) -> tuple[float, float]:
    """The middle 95% of what the resamples gave; NaN, where a resample gave nothing, is left out.

    Both ends are NaN if no resample gave anything.
    """
    given = resampled[~np.isnan(resampled)]
    if not given.size:
        return np.nan, np.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(given, [tail, 1 - tail])
    return float(low), float(high)


def estimate(values: Array, resampled: Array) -> Estimate:
    """The mean of the questions' values; `resampled` are its means in the resamples."""
    return Estimate(float(values.mean()), *interval(resampled))


def difference(first: Array, second: Array, first_means: Array, second_means: Array) -> Difference:
    """The mean of `second - first`, question by question, and the two in the same resamples."""
    gains = second - first
    # means of equal questions may differ in their last bit
    gains[np.isclose(gains, 0, atol=1e-12)] = 0
    resampled = second_means - first_means
    resampled[np.isclose(resampled, 0, atol=1e-12)] = 0
    rarer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return Difference(
        float(gains.mean()),
        *interval(resampled),
        p_value=min(1.0, 2 * (rarer + 1) / (len(resampled) + 1)),
        wins=int((gains > 0).sum()),
        losses=int((gains < 0).sum()),
        ties=int((gains == 0).sum()),
    )
