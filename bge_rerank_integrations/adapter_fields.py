"""The fields that decide an ordering, for both `BGERerank`, and what they write to metadata."""

from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, PrivateAttr

from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.ranking.calibration import Calibration
from bge_rerank_integrations.ranking.cutoffs import Cutoff
from bge_rerank_integrations.ranking.reranker import Reranker
from bge_rerank_integrations.types import OnError, RerankResult

RAW_SCORE_KEY = "rerank_raw_score"
"""Metadata key that `include_logit` writes, in both frameworks."""

SCORED_KEY = "rerank_scored"
"""Metadata key that is False where `on_error="keep"` stood in for a score, in both frameworks."""

EVIDENCE_KEY = "rerank_evidence"
"""Metadata key that `explain` writes: {"start", "end", "score"}, or None, in both frameworks."""


def evidence_note(result: RerankResult | None) -> dict[str, Any] | None:
    """What `explain` writes of a result."""
    if result is None or result.evidence is None:
        return None
    found = result.evidence
    return {"start": found.start, "end": found.end, "score": found.score}


class RerankFields(ScorerFields):
    """What decides an ordering: the options of `Reranker` on top of the scorer's."""

    top_n: int | None = Field(default=None, ge=1, description="How many to keep; None keeps all.")
    score_threshold: float | None = Field(
        default=None, description="Least score to keep, inclusive, on the scale that is shown."
    )
    normalize: bool = Field(
        default=True, description="Show a logit as its sigmoid; the order is always the logit's."
    )
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds that one call may take, loading the model apart."
    )
    on_error: OnError = Field(
        default="raise",
        description="When scoring fails or the time is over: 'raise', or 'keep' the retrieval "
        "order for what has no score, marked 'rerank_scored': False in its metadata.",
    )

    calibration: str | None = Field(
        default=None,
        description="File of bge-rerank calibrate: scores are then shown as probabilities.",
    )
    min_probability: float | None = Field(
        default=None, gt=0, lt=1, description="Least calibrated probability to keep."
    )
    target_recall: float | None = Field(
        default=None, gt=0, lt=1, description="Keep each relevant passage with this probability."
    )
    min_n: int | None = Field(
        default=None, ge=1, description="Cut at the largest gap between scores, from here on."
    )
    token_budget: int | None = Field(
        default=None, ge=1, description="Most tokens that what is kept may have together."
    )
    explain: bool = Field(
        default=False,
        description="Write where the best sentence of each kept text lies, and its score, to "
        "metadata['rerank_evidence']; costs a scoring of their sentences.",
    )
    trace_texts: bool = Field(
        default=False, description="Put query and passages into OpenTelemetry spans."
    )

    _read: tuple[str, Calibration] | None = PrivateAttr(default=None)

    def warm_up(self) -> Self:
        """Load the model and the calibration now; returns the adapter itself.

        Raises what any request would: also for settings that this model cannot have.
        """
        self.reranker()
        return self

    def reranker(self, on_trace: Callable[[RerankTrace], object] | None = None) -> Reranker:
        """A reranker with this adapter's present settings over its (shared) scorer."""
        return Reranker(
            self.loaded_scorer(),
            top_n=self.top_n,
            score_threshold=self.score_threshold,
            normalize=self.normalize,
            timeout=self.timeout,
            on_error=self.on_error,
            calibration=self._calibration(),
            cutoff=Cutoff(self.min_probability, self.target_recall, self.min_n, self.token_budget),
            explain=self.explain,
            on_trace=on_trace,
            trace_texts=self.trace_texts,
        )

    def _calibration(self) -> Calibration | None:
        if self.calibration is None:
            return None
        read = self._read
        if read is None or read[0] != self.calibration:
            read = self._read = (self.calibration, Calibration.load(self.calibration))
        return read[1]
