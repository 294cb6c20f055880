"""A stage of a cascade as fields that can be written down, for the adapters."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bge_rerank_integrations.adapter_base import ScorerFields
from bge_rerank_integrations.ranking.cascade import CascadeStage


class StageFields(ScorerFields):
    """A model that scores before the adapter's own, and how many texts it leaves to the next.

    `{"model": "BAAI/bge-small-en-v1.5", "keep": 50}` is one; every option of a scorer may be added.
    It is written down without what was left at its default. Nothing of it can be changed.
    """

    model_config = ConfigDict(frozen=True)

    keep: int = Field(ge=1, description="How many texts go on to the next model.")

    @model_validator(mode="after")
    def _names_its_model(self) -> Self:
        if self.scorer is None and "model" not in self.model_fields_set:
            raise ValueError("a stage of a cascade needs a model, one cheaper than the last")
        return self

    def loaded_stage(self) -> CascadeStage:
        """The stage with its scorer, loaded on the first call."""
        return CascadeStage(self.loaded_scorer(), self.keep)

    @model_serializer(mode="wrap")
    def _only_what_can_be_read_back(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = super()._only_what_can_be_read_back(handler)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in written.items()
            if name in ("model", "keep") or getattr(self, name) != fields[name].default
        }
