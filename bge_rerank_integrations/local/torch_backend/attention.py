"""Attention over sequences that lie end to end, without work for padding.

A segment may follow a prefix: another segment that it attends to in full, computed once for all
segments that share it. `RunAttention` computes adjacent segments of equal length in one product,
which suits a CPU. `PaddedAttention` copies the batch into a rectangle with a mask: a few large
products, for accelerators without a kernel for ragged sequences (see `varlen_attention.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.torch_backend.transfer import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` tokens in a row; `prefix` is the index of the segment that precedes them."""

    length: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The attention of a model, for any batch.

    `heads` share `kv_heads` groups of keys and values. With `causal` a token sees itself and
    earlier ones. `scale` multiplies the products; None is 1 / sqrt(size of a head).
    """

    heads: int
    kv_heads: int
    causal: bool
    scale: float | None


class PackedAttention(Protocol):
    """Scaled dot-product attention of one packed batch, for every layer of a model."""

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Arrays that it needs on the device, copied with the batch's."""
        ...

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
        """Attention's output, [rows, heads * size], with a row per token or one per segment.

        One query per segment is that of its first token, or with `causal` of its last. With
        `window` a token sees only that many tokens. `sent` holds the arrays on the device.
        """
        ...


BuildAttention = Callable[[Sequence[Segment], AttentionShape], PackedAttention]


@dataclass(frozen=True, slots=True)
class SegmentRun:
    """Adjacent segments of equal length and prefix: their rows and indices."""

    rows: slice
    segments: slice
    repeats: int
    length: int
    prefix: slice | None


class RunAttention:
    """One product for each run; see `PackedAttention`."""

    def __init__(self, segments: Sequence[Segment], shape: AttentionShape) -> None:
        self.arrays: Mapping[str, Array] = {}
        self._shape = shape
        self._runs = group_runs(segments)

    def __call__(
        self,
        _sent: Mapping[str, Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        /,
        *,
        window: int | None = None,
    ) -> Tensor:
        single = len(query) != len(key)
        out = torch.empty_like(query)
        for run in self._runs:
            rows = run.segments if single else run.rows
            k, v = (
                _with_prefix(x[run.rows].view(run.repeats, run.length, -1), x, run)
                for x in (key, value)
            )
            asked = query[rows].view(run.repeats, -1, query.shape[1])
            out[rows] = mix(self._shape, asked, k, v, window).reshape(-1, query.shape[1])
        return out


def _with_prefix(own: Tensor, every: Tensor, run: SegmentRun) -> Tensor:
    if run.prefix is None:
        return own
    shared = every[run.prefix].expand(run.repeats, -1, -1)
    return torch.cat([shared, own], dim=1)


def mix(
    shape: AttentionShape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """[n, asking, heads * size] over [n, seen, kv_heads * size]: the last rows ask."""
    count, asking, width = query.shape
    seen = key.shape[1]
    causal = shape.causal and asking > 1
    if shape.causal and asking == 1 and window is not None and mask is None:
        key, value = key[:, -window:], value[:, -window:]
    elif causal and (asking != seen or (window is not None and seen > window)):
        mask, causal = _causal_mask(asking, seen, window, query.device), False
    q, k, v = (
        x.view(count, x.shape[1], heads, -1).transpose(1, 2)
        for x, heads in ((query, shape.heads), (key, shape.kv_heads), (value, shape.kv_heads))
    )
    if shape.kv_heads != shape.heads:
        k, v = (x.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for x in (k, v))
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=shape.scale
    )
    return mixed.transpose(1, 2).reshape(count, asking, width)


def _causal_mask(asking: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    at = torch.arange(seen - asking, seen, device=device)[:, None]
    back = at - torch.arange(seen, device=device)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def group_runs(segments: Sequence[Segment]) -> list[SegmentRun]:
    """Groups of adjacent segments with equal length and prefix, covering every row once."""
    starts = [0]
    for segment in segments:
        starts.append(starts[-1] + segment.length)
    runs: list[SegmentRun] = []
    number = 0
    for segment, group in groupby(segments):
        repeats = len(list(group))
        prefix = None
        if segment.prefix is not None:
            prefix = slice(starts[segment.prefix], starts[segment.prefix + 1])
        rows = slice(starts[number], starts[number + repeats])
        runs.append(
            SegmentRun(rows, slice(number, number + repeats), repeats, segment.length, prefix)
        )
        number += repeats
    return runs


class PaddedAttention:
    """Takes one prefix, before all segments, or none; see `PackedAttention`."""

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
        """The keys that the single query of each segment sees: [n, 1, 1, seen]."""
        if not self._shape.causal:
            return None if self._full else sent["attention_there"][:, None, None, :]
        at = sent["attention_ends"][:, None] + self._prefix
        back = at - torch.arange(self._prefix + self._longest, device=at.device)
        seen = (back >= 0) if window is None else (back >= 0) & (back < window)
        return seen[:, None, None, :]

    def _widen(self, packed: Tensor, places: Tensor) -> Tensor:
        wide = packed.new_zeros(self._count * self._longest, packed.shape[1])
        return wide.index_copy_(0, places, packed).view(self._count, self._longest, -1)
