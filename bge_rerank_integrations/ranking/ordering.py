"""From raw scores to an ordering: sorted, cut by threshold and rules, the unscored at the end."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.ranking.cutoffs import Cutoff, keep
from bge_rerank_integrations.types import FloatArray, RerankResult


def best_first(
    raw: FloatArray,
    *,
    shown: Callable[[float], float],
    score_threshold: float | None,
    cutoff: Cutoff,
    limit: int | None,
    calibration: Calibration | None,
    count_tokens: Callable[[int], int],
) -> tuple[list[RerankResult], str | None]:
    """The results, best first, and which rule decided how many.

    Equal raw scores keep the caller's order. NaN is no score: such a passage follows with `scored`
    False, whatever the threshold and `cutoff`, if `limit` leaves room. `shown` puts a raw score on
    the scale that is shown, which the threshold is on; `count_tokens` gives the tokens of the
    passage at a position. The rule is None where all come back.
    """
    order = np.argsort(-raw, kind="stable").tolist()  # NaN goes last
    results = [RerankResult(i, shown(float(raw[i])), float(raw[i])) for i in order]
    late = [replace(result, scored=False) for result in results if math.isnan(result.raw_score)]
    ranked = results[: len(results) - len(late)]
    kept_by = None
    if score_threshold is not None:
        above = [result for result in ranked if result.score >= score_threshold]
        if len(above) < len(ranked):
            kept_by = f"score_threshold {score_threshold} leaves {len(above)}"
        ranked = above
    kept = keep(
        [result.raw_score for result in ranked],
        cutoff,
        limit=limit,
        calibration=calibration,
        count_tokens=lambda place: count_tokens(ranked[place].index),
    )
    return [*ranked[: kept.number], *late][:limit], kept.reason or kept_by
