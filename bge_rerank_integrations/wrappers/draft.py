"""Exact results from a draft: score all pairs in half precision, and the best in float32."""

from collections.abc import Callable

import numpy as np

from bge_rerank_integrations.base.contract import CheckedPairs, checked_scores
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.errors import ScoringFailed
from bge_rerank_integrations.types import FloatArray, Scorer
from bge_rerank_integrations.wrappers import ScorerWrapper

SAMPLE = 8
"""At least this many pairs are scored twice, to measure the error of the draft."""


class DraftedScorer(ScorerWrapper):
    """Scores of `scorer`; a `Reranker` gets them only for pairs that can be among its results.

    `draft` is the same model in a faster number format. Its scores show which pairs can be among
    the results, with a margin of twice the largest difference between the two scorers so far, in
    this call and in earlier ones. This is not a guarantee: a pair may be missed if the draft's
    error on it is more than twice the largest error on the others.
    """

    def __init__(self, scorer: Scorer, draft: Scorer) -> None:
        super().__init__(scorer)
        self._draft = draft
        self._difference = 0.0

    def __repr__(self) -> str:
        return f"DraftedScorer({self._scorer!r}, {self._draft!r})"

    def _score(self, pairs: CheckedPairs) -> FloatArray:
        return checked_scores(self._scorer, pairs)

    def score_best(
        self, pairs: CheckedPairs, *, limit: int | None, is_kept: Callable[[float], bool]
    ) -> FloatArray:
        """Scores of which the `limit` highest that `is_kept` accepts are those of `scorer`.

        `is_kept` must accept every score above one that it accepts. The other scores are the
        draft's. A failure's `partial` has only scores of `scorer`.
        """
        exact = np.full(len(pairs), np.nan, dtype=np.float32)
        try:
            drafted = checked_scores(self._draft, pairs)
            chosen = np.argsort(-drafted, kind="stable")[: max(limit or 0, SAMPLE)]
            while chosen.size:
                some = CheckedPairs(pairs[index] for index in chosen)
                exact[chosen] = checked_scores(self._scorer, some)
                done = ~np.isnan(exact)
                largest = float(np.abs(exact[done] - drafted[done]).max())
                self._difference = max(self._difference, largest)
                highest = drafted + 2 * self._difference
                best = np.sort(exact[done])[::-1]
                last = -np.inf if limit is None or limit > len(best) else best[limit - 1]
                left = np.flatnonzero(~done & (highest >= last))
                chosen = np.array([i for i in left if is_kept(float(highest[i]))], dtype=np.intp)
        except ScoringFailed as error:
            error.partial = exact
            raise
        note({"rescored": int(done.sum())})
        return np.where(done, exact, drafted)
