"""Turn raw scores into the probability of relevance, fitted on your own judged data.

A calibration belongs to one scorer, by its `name`. Applying it needs only numpy, fitting it the
`eval` extra.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.errors import InvalidInputError, missing_extra

logger = logging.getLogger("bge_rerank_integrations")

MIN_PAIRS = 10
"""A fit needs at least this many relevant pairs and this many others."""

FOLDS, BINS, TOP = 5, 10, 3
DRAWS = 20
"""How often judgements are drawn from the probabilities to estimate the floor of an error."""

WATCHED_QUERIES, MAX_STABILITY_INDEX = 20, 0.5
"""Warn if the population stability index of the last queries is above this."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose probabilities lie in one tenth of [0, 1]: their mean, and the relevant share.

    The probabilities come from a fit without these queries.
    """

    pairs: int
    probability: float
    relevant: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Map raw scores of the scorer named `scorer` to probabilities.

    The probability is sigmoid(slope * raw score + rank_slope * log(1 + rank) + intercept), where
    the rank of a query's best passage is 0: of two passages with equal raw scores, the one with the
    better rank is relevant more often. `relevant_scores` has a row for each query with relevant
    pairs: their raw scores. `percentiles` are the 0th to 100th percentile of all raw scores.

    `error` is the expected calibration error on held-out queries: the mean distance between
    probability and relevant share over the `bins`. `floor` is the error that exact probabilities
    would show with this number of pairs. `top_error` and `top_floor` are those of the first three
    passages of each query; `top_bias` is their mean probability minus their relevant share.
    """

    scorer: str
    slope: float
    rank_slope: float
    intercept: float
    relevant_scores: tuple[tuple[float, ...], ...]
    percentiles: tuple[float, ...]
    pairs: int
    bins: tuple[Bin, ...]
    error: float
    floor: float
    top_error: float
    top_floor: float
    top_bias: float
    made: str

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        if len(self.percentiles) != 101 or list(self.percentiles) != sorted(self.percentiles):
            raise ValueError("percentiles must be 101 numbers in order")
        if not all(self.relevant_scores):
            raise ValueError("each row of relevant_scores needs a score")
        if self.slope < 0 or self.rank_slope > 0:
            raise ValueError("a higher score or a better rank must not lower the probability")

    def probability(self, raw_score: float, rank: int = 0) -> float:
        """The probability that a passage with this raw score and rank, from 0, is relevant."""
        weights = np.array([self.slope, self.rank_slope, self.intercept])
        return float(_apply(weights, np.array([raw_score]), np.array([rank]))[0])

    def threshold(self, recall: float) -> float:
        """The raw score to cut at, so that a query keeps this share of its relevant passages.

        The share holds on average over queries, by conformal risk control (Angelopoulos and
        others, arXiv 2208.02814): the threshold is the highest score whose mean loss of recall over
        n queries is at most (1 - recall)(n + 1) / n - 1 / n. Queries must be like those of the
        calibration: of the same kind, with the same collection and the same first stage.

        Raises `InvalidInputError` for a recall outside (0, 1) or too high for n queries.
        """
        if not 0 < recall < 1:
            raise InvalidInputError(f"target_recall is {recall!r}; it must lie between 0 and 1")
        queries = len(self.relevant_scores)
        scores = np.concatenate(self.relevant_scores)
        shares = np.concatenate([np.full(len(own), 1 / len(own)) for own in self.relevant_scores])
        order = np.argsort(scores)
        scores = scores[order]
        # the share of a query's relevant passages below each score, summed over the queries
        lost = np.append(0, np.cumsum(shares[order]))[np.searchsorted(scores, scores)]
        # the margin absorbs rounding: 0.05 * 20 may be 0.99999...
        held = lost + 1 <= (1 - recall) * (queries + 1) + 1e-9
        if not held.any():
            raise InvalidInputError(
                f"target_recall={recall} needs a calibration of at least "
                f"{math.ceil(1 / (1 - recall) - 1e-9) - 1} queries with a relevant passage; this "
                f"one has {queries}"
            )
        return float(scores[held][-1])

    def kept(self, threshold: float) -> float:
        """The share of all passages of the calibration that reach this raw score."""
        return float(np.mean(np.array(self.percentiles) >= threshold))

    def check_scorer(self, name: str) -> None:
        """Raise `InvalidInputError` unless the calibration is for the scorer with this name."""
        if name != self.scorer:
            raise InvalidInputError(
                f"this calibration was made for {self.scorer} and not for {name}; another model, "
                "precision or option gives other scores: make one with bge-rerank calibrate"
            )

    def save(self, file: str | Path) -> None:
        """Write it as JSON."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        Path(file).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> Calibration:
        """Read what `save` wrote; raises `InvalidInputError` for anything else."""
        try:
            return TypeAdapter(cls).validate_json(Path(file).read_bytes())
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            problem = "; ".join(lines)
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"{file} is not a calibration ({problem}); make one with bge-rerank calibrate"
        )


class ScoreWatch:
    """Warns if the raw scores of recent queries are unlike those that a calibration was fitted on.

    It uses the population stability index over deciles of the fitted scores (S. Siddiqi, Credit
    Risk Scorecards, 2006). Any number of threads may call it.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._edges = np.array(calibration.percentiles[10:100:10])
        self._recent: deque[np.ndarray] = deque(maxlen=WATCHED_QUERIES)
        self._warned = False

    def observe(self, raw_scores: np.ndarray) -> float | None:
        """Add a query's scores; return the index if the recent scores are unlike the fitted ones.

        If they are, each trace says so, and the log once.
        """
        places = np.searchsorted(self._edges, raw_scores[~np.isnan(raw_scores)], side="right")
        self._recent.append(np.bincount(places, minlength=10))
        recent = list(self._recent)
        if len(recent) < WATCHED_QUERIES:
            return None
        shares = np.sum(recent, axis=0) + 0.5
        shares /= shares.sum()
        index = float(np.sum((shares - 0.1) * np.log(shares / 0.1)))
        if index <= MAX_STABILITY_INDEX:
            return None
        drift = f"recent scores are unlike those of the fit, population stability index {index:.2f}"
        note({}, {"calibration": drift})
        if not self._warned:
            self._warned = True
            logger.warning(
                "calibration: %s. Probabilities may be wrong: calibrate again on queries and "
                "passages like these. Logged once per reranker.",
                drift,
            )
        return index


def ranks(raw_scores: np.ndarray) -> np.ndarray:
    """For each passage of a query, how many of the others have a higher raw score."""
    ascending = np.sort(raw_scores[~np.isnan(raw_scores)])
    ranked: np.ndarray = len(ascending) - np.searchsorted(ascending, raw_scores, side="right")
    return ranked


def fit_calibration(
    scorer: str,
    raw_scores: Sequence[float] | np.ndarray,
    relevant: Sequence[bool | int] | np.ndarray,
    queries: Sequence[str],
) -> Calibration:
    """Fit a calibration for the scorer with this name on judged pairs, each with its query.

    It is a logistic regression on the raw score and the logarithm of its rank among the query's
    pairs, with Platt's smoothed targets (Platt 1999). Each query should therefore have as many
    pairs as one call will rerank. The errors come from five-fold cross-validation over queries. A
    judgement is True or 1 for a relevant pair, False or 0 for another.

    Raises `InvalidInputError` for any other judgement, fewer than 10 relevant or 10 other pairs,
    fewer than five queries, and relevant pairs that do not score higher than others; `MissingExtra`
    without scikit-learn.
    """
    raw, labels = np.asarray(raw_scores, dtype=np.float64), _read_judgements(relevant)
    groups = np.unique(np.asarray(queries), return_inverse=True)[1]
    if not len(raw) == len(labels) == len(groups):
        raise InvalidInputError(
            f"{len(raw)} scores, {len(labels)} judgements and {len(groups)} queries: give one of "
            "each per pair"
        )
    if not np.isfinite(raw).all():
        raise InvalidInputError("a raw score is NaN or infinite; leave unscored pairs out")
    number = int(groups.max(initial=-1)) + 1
    if min(labels.sum(), (~labels).sum()) < MIN_PAIRS or number < FOLDS:
        raise InvalidInputError(
            f"{int(labels.sum())} relevant and {int((~labels).sum())} other pairs of "
            f"{number} queries are too few; a calibration needs {MIN_PAIRS} of each and {FOLDS} "
            "queries"
        )
    places = np.empty(len(raw), dtype=np.intp)
    members = [np.flatnonzero(groups == group) for group in range(number)]
    for own in members:
        places[own] = ranks(raw[own])
    weights = _fit(raw, places, labels)
    probability = _held_out(raw, places, labels, groups)
    top, random = places < TOP, np.random.default_rng(0)
    bins = _bins(probability, labels)
    return Calibration(
        scorer=scorer,
        slope=float(weights[0]),
        rank_slope=float(weights[1]),
        intercept=float(weights[2]),
        relevant_scores=tuple(
            tuple(np.sort(raw[own][labels[own]]).tolist()) for own in members if labels[own].any()
        ),
        percentiles=tuple(np.percentile(raw, np.arange(101)).tolist()),
        pairs=len(raw),
        bins=bins,
        error=_error(bins),
        floor=_floor(probability, random),
        top_error=_error(_bins(probability[top], labels[top])),
        top_floor=_floor(probability[top], random),
        top_bias=float(probability[top].mean() - labels[top].mean()),
        made=dt.datetime.now(dt.UTC).date().isoformat(),
    )


def _read_judgements(relevant: Sequence[bool | int] | np.ndarray) -> np.ndarray:
    for place, given in enumerate(relevant):
        if not isinstance(given, bool | np.bool_ | Real) or given not in (0, 1):
            # a text is named only by its type
            shown = given if isinstance(given, Real) else type(given).__name__
            raise InvalidInputError(
                f"the judgement at position {place} is {shown}; it must be True or 1 for a "
                "relevant pair, False or 0 for another"
            )
    return np.asarray(relevant, dtype=bool)


def _apply(weights: np.ndarray, raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    slope, rank_slope, intercept = weights
    # tanh saturates where exp would overflow
    likely: np.ndarray = 0.5 * (
        1 + np.tanh(0.5 * (slope * raw + rank_slope * np.log1p(places) + intercept))
    )
    return likely


def _fit(raw: np.ndarray, places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The slope of the score, the slope of the rank's logarithm, and the intercept."""
    with missing_extra("eval"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    auc = float(roc_auc_score(labels, raw))
    # Platt's targets keep the slope finite where a score separates the data
    high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2)
    targets = np.where(labels, high, low)
    columns = np.column_stack([raw, np.log1p(places)])
    scale = np.maximum(columns.std(axis=0), 1e-9)  # the solver needs columns of similar scale

    def solve(*used: int) -> np.ndarray:
        logistic = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        logistic.fit(
            np.concatenate([columns, columns])[:, used] / scale[[*used]],
            np.repeat([1, 0], len(raw)),
            sample_weight=np.concatenate([targets, 1 - targets]),
        )
        weights = np.zeros(3)
        weights[[*used, 2]] = [*(logistic.coef_[0] / scale[[*used]]), logistic.intercept_[0]]
        return weights

    weights = solve(0, 1)
    # neither a higher score nor a better rank may lower the probability; the columns are
    # correlated, so with few queries one may get the wrong sign
    if weights[0] < 0:
        weights = solve(1)
    elif weights[1] > 0:
        weights = solve(0)
    if auc <= 0.5 or weights[0] < 0 or weights[1] > 0:
        raise InvalidInputError(
            f"relevant pairs do not score higher than others (AUC {auc:.3g}): are the judgements "
            "reversed, or those of other texts?"
        )
    return weights


def _held_out(
    raw: np.ndarray, places: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Held-out probabilities: each fifth of the queries is predicted by a fit on the others."""
    probability = np.empty(len(raw))
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
    for number in range(FOLDS):
        held = fold == number
        if not 0 < labels[~held].sum() < (~held).sum():
            raise InvalidInputError(
                "nearly all relevant pairs belong to a few queries: a calibration needs more"
            )
        weights = _fit(raw[~held], places[~held], labels[~held])
        probability[held] = _apply(weights, raw[held], places[held])
    return probability


def _bins(probability: np.ndarray, labels: np.ndarray) -> tuple[Bin, ...]:
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(int(here.sum()), float(probability[here].mean()), float(labels[here].mean()))
        for here in (place == number for number in range(BINS))
        if here.any()
    )


def _error(bins: Sequence[Bin]) -> float:
    distances = [one.pairs * abs(one.probability - one.relevant) for one in bins]
    return sum(distances) / sum(one.pairs for one in bins)


def _floor(probability: np.ndarray, random: np.random.Generator) -> float:
    """The mean error of judgements drawn from these probabilities."""
    draws = (random.random(len(probability)) < probability for _ in range(DRAWS))
    return float(np.mean([_error(_bins(probability, labels)) for labels in draws]))
