"""Attention over a rectangle into which a packed batch is copied, with a mask over the rest.

For accelerators on which no kernel for ragged sequences works: a few large products.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bge_rerank_integrations.local.torch_backend.attention import AttentionShape, Segment, mix
from bge_rerank_integrations.local.torch_backend.transfer import Array


class PaddedAttention:
    """See `attention.PackedAttention`. Takes one prefix, before all segments, or none."""

    def __init__(self, segments: Sequence[Segment], shape: AttentionShape) -> None:
        shared = [number for number, s in enumerate(segments) if s.prefix is None]
        prefixes = {s.prefix for s in segments} - {None}
        if prefixes and not (prefixes == {0} and shared == [0]):
            raise ValueError("padded attention takes one prefix, before all segments, or none")
        self._shape = shape
        self._prefix = segments[0].length if prefixes else 0
        lengths = np.array([s.length for s in segments[1 if prefixes else 0 :]])
        self._count, self._longest = len(lengths), int(lengths.max())
        there = np.arange(self._longest) < lengths[:, None]
        self._full = bool(there.all())
        # places by number: a mask as an index would make the host wait for the device
        self.arrays: Mapping[str, Array] = {
            "attention_places": np.flatnonzero(there),
            "attention_there": there,
            "attention_ends": lengths - 1,
        }

    def __call__(
        self,
        sent: Mapping[str, Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        *,
        window: int | None = None,
    ) -> Tensor:
        p, shape = self._prefix, self._shape
        places, there = sent["attention_places"], sent["attention_there"]
        wide_key, wide_value = (self._widen(x[p:], places) for x in (key, value))
        if p:
            wide_key, wide_value = (
                torch.cat([x[:p].expand(self._count, -1, -1), wide], dim=1)
                for x, wide in ((key, wide_key), (value, wide_value))
            )
        if len(query) != len(key):
            asked = query[1 if p else 0 :]
            mask = self._single_mask(sent, window)
            mixed = mix(shape, asked[:, None], wide_key, wide_value, window, mask=mask)[:, 0]
            return torch.cat([query[:1], mixed]) if p else mixed
        # causal and padded on the right: no token sees a pad, so no mask is needed for them
        mask = None if shape.causal or self._full else there[:, None, None, :]
        wide_query = self._widen(query[p:], places)
        mixed = mix(shape, wide_query, wide_key, wide_value, window, mask=mask)
        mixed = mixed.view(-1, query.shape[1]).index_select(0, places)
        if not p:
            return mixed
        own = mix(shape, query[None, :p], key[None, :p], value[None, :p], window)[0]
        return torch.cat([own, mixed])

    def _single_mask(self, sent: Mapping[str, Tensor], window: int | None) -> Tensor | None:
        """What the one asking token of each segment sees: [n, 1, 1, seen]."""
        if not self._shape.causal:
            return None if self._full else sent["attention_there"][:, None, None, :]
        at = sent["attention_ends"][:, None] + self._prefix
        back = at - torch.arange(self._prefix + self._longest, device=at.device)
        seen = (back >= 0) if window is None else (back >= 0) & (back < window)
        return seen[:, None, None, :]

    def _widen(self, packed: Tensor, places: Tensor) -> Tensor:
        wide = packed.new_zeros(self._count * self._longest, packed.shape[1])
        return wide.index_copy_(0, places, packed).view(self._count, self._longest, -1)
