"""Turn raw scores into the probability of relevance, fitted on your own judged data.

A calibration belongs to one scorer, by its `name`. Applying it needs only numpy, fitting it the
`eval` extra.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bge_rerank_integrations.errors import InvalidInputError, missing_extra

CalibrationMethod = Literal["platt", "isotonic"]

LEAST = 10
"""The fewest relevant, and the fewest other, pairs for a fit."""

ENOUGH_FOR_ISOTONIC = 500
"""With this many relevant and this many other pairs, `"auto"` fits a curve of any shape."""

FOLDS, BINS = 5, 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs with a probability in one tenth: its mean, and the relevant share.

    The probabilities come from a fit without these queries.
    """

    pairs: int
    probability: float
    relevant: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Map raw scores of the scorer named `scorer` to probabilities.

    `curve` is ((slope, intercept),) of the logistic curve of Platt's method, or (raw score,
    probability) at each corner of an isotonic regression. `relevant_scores` are the raw scores of
    the relevant pairs in the fit, ascending. `error` is the expected calibration error: the mean
    distance between probability and relevant share over the `bins`.
    """

    scorer: str
    method: CalibrationMethod
    curve: tuple[tuple[float, float], ...]
    relevant_scores: tuple[float, ...]
    pairs: int
    bins: tuple[Bin, ...]
    error: float
    made: str

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        if not self.curve or list(self.relevant_scores) != sorted(self.relevant_scores):
            raise ValueError("there must be a curve, and relevant_scores in order")
        if not _rises(self.method, self.curve):
            raise ValueError("a larger score must not have a smaller probability")

    def probability(self, raw_score: float) -> float:
        """The probability that a passage with this raw score is relevant, in (0, 1)."""
        return float(_apply(self.method, self.curve, np.array([raw_score]))[0])

    def threshold(self, recall: float) -> float:
        """The raw score that a relevant passage reaches with a probability of at least `recall`.

        Split conformal prediction (Vovk and others 2005; Angelopoulos and Bates, arXiv 2107.07511):
        the k-th smallest of n relevant scores, k = floor((n + 1)(1 - recall)). It holds on average
        if relevant passages are exchangeable with those of the calibration: the same kind of
        queries, the same collection, the same first stage.

        Raises `InvalidInputError` for a recall outside (0, 1) or too high for n scores.
        """
        if not 0 < recall < 1:
            raise InvalidInputError(f"target_recall is {recall!r}; it must lie between 0 and 1")
        known = len(self.relevant_scores)
        # the margin absorbs rounding: 0.05 * 20 may be 0.99999...
        place = math.floor((known + 1) * (1 - recall) + 1e-9)
        if place < 1:
            raise InvalidInputError(
                f"target_recall={recall} needs a calibration of at least "
                f"{math.ceil(1 / (1 - recall) - 1e-9) - 1} relevant pairs; this one has {known}"
            )
        return self.relevant_scores[place - 1]

    def check_scorer(self, name: str) -> None:
        """Raise `InvalidInputError` unless the calibration is for the scorer of this name."""
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
            f"{file} is no calibration ({problem}); make one with bge-rerank calibrate"
        )


def fit_calibration(
    scorer: str,
    raw_scores: Sequence[float] | np.ndarray,
    relevant: Sequence[bool | int] | np.ndarray,
    queries: Sequence[str],
    *,
    method: CalibrationMethod | Literal["auto"] = "auto",
) -> Calibration:
    """Fit a calibration for the scorer of this name on judged pairs, each with its query.

    `"platt"` fits a logistic curve with smoothed targets (Platt 1999), `"isotonic"` any curve that
    does not fall (Zadrozny and Elkan 2002); `"auto"` chooses the second from 500 relevant and 500
    other pairs on. The error is that of five fits on held-out queries. A judgement is True or 1 for
    a relevant pair, False or 0 for another.

    Raises `InvalidInputError` for another method or judgement, fewer than 10 relevant or 10 other
    pairs, fewer than five queries, and relevant pairs that do not score higher than others;
    `MissingExtra` without scikit-learn.
    """
    if method not in ("auto", *get_args(CalibrationMethod)):
        raise InvalidInputError(f"method is {method!r}; it must be 'auto', 'platt' or 'isotonic'")
    raw, labels = np.asarray(raw_scores, dtype=np.float64), _read_judgements(relevant)
    groups = np.unique(np.asarray(queries), return_inverse=True)[1]
    if not len(raw) == len(labels) == len(groups):
        raise InvalidInputError(
            f"{len(raw)} scores, {len(labels)} judgements and {len(groups)} queries: each pair has "
            "one of each"
        )
    if not np.isfinite(raw).all():
        raise InvalidInputError("a raw score is NaN or infinite; only scored pairs calibrate")
    least = int(min(labels.sum(), (~labels).sum()))
    if least < LEAST or groups.max() + 1 < FOLDS:
        raise InvalidInputError(
            f"{int(labels.sum())} relevant and {int((~labels).sum())} other pairs of "
            f"{groups.max() + 1} queries are too few; a calibration needs {LEAST} of each and "
            f"{FOLDS} queries"
        )
    if method == "auto":
        method = "isotonic" if least >= ENOUGH_FOR_ISOTONIC else "platt"
    curve = _fit(method, raw, labels)
    bins = _reliability(method, raw, labels, groups)
    return Calibration(
        scorer=scorer,
        method=method,
        curve=curve,
        relevant_scores=tuple(np.sort(raw[labels]).tolist()),
        pairs=len(raw),
        bins=bins,
        error=sum(b.pairs * abs(b.probability - b.relevant) for b in bins) / len(raw),
        made=dt.datetime.now(dt.UTC).date().isoformat(),
    )


def _read_judgements(relevant: Sequence[bool | int] | np.ndarray) -> np.ndarray:
    for place, given in enumerate(relevant):
        if not isinstance(given, bool | np.bool_ | Real) or given not in (0, 1):
            # the type alone of what may be a text
            shown = given if isinstance(given, Real) else type(given).__name__
            raise InvalidInputError(
                f"the judgement at position {place} is {shown}; it must be True or 1 for a "
                "relevant pair, False or 0 for another"
            )
    return np.asarray(relevant, dtype=bool)


def _apply(
    method: CalibrationMethod, curve: Sequence[tuple[float, float]], raw: np.ndarray
) -> np.ndarray:
    if method == "isotonic":
        corners, probabilities = np.asarray(curve).T
        likely: np.ndarray = np.interp(raw, corners, probabilities)
        return likely
    slope, intercept = curve[0]
    # tanh saturates where exp would overflow
    return 0.5 * (1 + np.tanh(0.5 * (slope * raw + intercept)))


def _rises(method: CalibrationMethod, curve: Sequence[tuple[float, float]]) -> bool:
    if method == "platt":
        return curve[0][0] > 0
    return bool((np.diff(np.asarray(curve), axis=0) >= 0).all())


def _fit(
    method: CalibrationMethod, raw: np.ndarray, labels: np.ndarray
) -> tuple[tuple[float, float], ...]:
    with missing_extra("eval"):
        from sklearn.isotonic import IsotonicRegression
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    # a curve that cannot fall would hide reversed judgements: flat, with the right mean
    auc = float(roc_auc_score(labels, raw))
    if auc <= 0.5:
        raise _not_higher(f"AUC {auc:.3g}")
    # Platt's targets keep the slope finite where a score separates the data
    most, least = (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2)
    if method == "isotonic":
        model = IsotonicRegression(y_min=least, y_max=most, out_of_bounds="clip")
        model.fit(raw, labels)
        return tuple(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True))
    targets = np.where(labels, most, least)
    logistic = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    logistic.fit(
        np.concatenate([raw, raw])[:, None],
        np.repeat([1, 0], len(raw)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    slope, intercept = float(logistic.coef_[0, 0]), float(logistic.intercept_[0])
    if slope <= 0:
        raise _not_higher(f"slope {slope:.3g}")
    return ((slope, intercept),)


def _not_higher(measured: str) -> InvalidInputError:
    return InvalidInputError(
        f"relevant pairs do not score higher than others ({measured}): are the judgements "
        "reversed, or those of other texts?"
    )


def _reliability(
    method: CalibrationMethod, raw: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[Bin, ...]:
    """Ten bins of probabilities, each fifth of the queries predicted by a fit on the others."""
    probability = np.empty(len(raw))
    fold = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
    for number in range(FOLDS):
        held = fold == number
        if not 0 < labels[~held].sum() < (~held).sum():
            raise InvalidInputError(
                "nearly all relevant pairs belong to a few queries: a calibration needs more"
            )
        probability[held] = _apply(method, _fit(method, raw[~held], labels[~held]), raw[held])
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(int(here.sum()), float(probability[here].mean()), float(labels[here].mean()))
        for here in (place == number for number in range(BINS))
        if here.any()
    )
