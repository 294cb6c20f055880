"""The list that a rerank returns."""

from typing import SupportsIndex, overload

from bge_rerank_integrations.base.html import html_table
from bge_rerank_integrations.types import RerankResult


class RerankResults(list[RerankResult]):
    """The results of a rerank, best first: a list like any other, with a table for notebooks.

    The table shows no passages. A slice or a copy is a `RerankResults` too.
    """

    @overload
    def __getitem__(self, place: SupportsIndex) -> RerankResult: ...

    @overload
    def __getitem__(self, place: slice) -> "RerankResults": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "RerankResult | RerankResults":
        if isinstance(place, slice):
            return RerankResults(super().__getitem__(place))
        return super().__getitem__(place)

    def copy(self) -> "RerankResults":
        return RerankResults(self)

    def _repr_html_(self) -> str:
        """A row for each result: its new and its old place, both from 1, and its scores.

        `scored` and the evidence have columns only if a result needs them.
        """
        columns: dict[str, list[object]] = {
            "place": [*range(1, len(self) + 1)],
            "was": [result.index + 1 for result in self],
            "index": [result.index for result in self],
            "score": [result.score if result.scored else None for result in self],
            "raw score": [result.raw_score if result.scored else None for result in self],
        }
        if not all(result.scored for result in self):
            columns["scored"] = ["yes" if result.scored else "no" for result in self]
        found = [result.evidence for result in self]
        if any(found):
            columns["evidence"] = [one and f"{one.start}:{one.end}" for one in found]
            columns["evidence score"] = [one and one.score for one in found]
        return html_table([*columns], zip(*columns.values(), strict=True))
