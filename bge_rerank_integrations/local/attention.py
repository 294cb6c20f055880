"""Attention over sequences that lie end to end, without work for padding.

`"runs"` computes neighbouring segments of equal length at once, which suits a CPU; `"padded"`
copies everything into one rectangle, which suits accelerators, where few large kernels win.
A segment may stand behind a prefix: another segment that it sees in full, computed once for all
that share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.device import Attention


@dataclass(frozen=True, slots=True)
class Segment:
    """So many tokens in a row; `prefix` is the index of the segment they stand behind."""

    length: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring segments of equal length and prefix: their rows, numbers and measures."""

    rows: slice
    segments: slice
    repeats: int
    length: int
    prefix: slice | None


class PackedAttention:
    """Scaled dot-product attention of one packed batch, for every layer of a model.

    `heads` share `kv_heads` groups of keys and values. With `causal` a token sees itself and what
    is before it, with `window` only that many tokens.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        *,
        heads: int,
        kv_heads: int,
        causal: bool,
        scale: float | None,
        path: Attention,
        device: str,
    ) -> None:
        self._heads = heads
        self._kv_heads = kv_heads
        self._causal = causal
        self._scale = scale
        self._device = device
        self._runs = group_runs(segments)
        if path == "padded":
            self._fill(segments)
        self._padded = path == "padded"

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None
    ) -> Tensor:
        """Mix the values: [rows, heads * size], a row per token or one per segment.

        A query of one row per segment is that of its first token, or with `causal` of its last.
        """
        attend = self._attend_padded if self._padded else self._attend_runs
        return attend(query, key, value, window)

    def _attend_runs(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        single = len(query) != len(key)
        out = torch.empty_like(query)
        for run in self._runs:
            rows = run.segments if single else run.rows
            k, v = (
                self._with_prefix(x[run.rows].view(run.repeats, run.length, -1), x, run)
                for x in (key, value)
            )
            asked = query[rows].view(run.repeats, -1, query.shape[1])
            out[rows] = self._mix(asked, k, v, window).reshape(-1, query.shape[1])
        return out

    def _with_prefix(self, own: Tensor, every: Tensor, run: Run) -> Tensor:
        if run.prefix is None:
            return own
        shared = every[run.prefix].expand(run.repeats, -1, -1)
        return torch.cat([shared, own], dim=1)

    def _mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[n, asking, heads * size] over [n, seen, kv_heads * size]: the last rows ask."""
        count, asking, width = query.shape
        seen = key.shape[1]
        causal = self._causal and asking > 1
        if self._causal and asking == 1 and window is not None and mask is None:
            key, value = key[:, -window:], value[:, -window:]
        elif causal and (asking != seen or (window is not None and seen > window)):
            mask, causal = self._causal_mask(asking, seen, window), False
        q, k, v = (
            x.view(count, x.shape[1], heads, -1).transpose(1, 2)
            for x, heads in ((query, self._heads), (key, self._kv_heads), (value, self._kv_heads))
        )
        if self._kv_heads != self._heads:
            k, v = (x.repeat_interleave(self._heads // self._kv_heads, dim=1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=self._scale
        )
        return mixed.transpose(1, 2).reshape(count, asking, width)

    def _causal_mask(self, asking: int, seen: int, window: int | None) -> Tensor:
        at = torch.arange(seen - asking, seen, device=self._device)[:, None]
        back = at - torch.arange(seen, device=self._device)
        return (back >= 0) if window is None else (back >= 0) & (back < window)

    def _fill(self, segments: Sequence[Segment]) -> None:
        """Prepare the rectangle: which of its places hold a token, and what they may see."""
        shared = [number for number, s in enumerate(segments) if s.prefix is None]
        prefixes = {s.prefix for s in segments} - {None}
        if prefixes and not (prefixes == {0} and shared == [0]):
            raise ValueError("padded attention takes one prefix, before all segments, or none")
        self._prefix = segments[0].length if prefixes else 0
        lengths = torch.tensor([s.length for s in segments[1 if prefixes else 0 :]])
        self._longest = int(lengths.max())
        self._there = (torch.arange(self._longest) < lengths[:, None]).to(self._device)
        self._ends = lengths.to(self._device) - 1
        self._full = bool((lengths == self._longest).all())

    def _attend_padded(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None
    ) -> Tensor:
        p = self._prefix
        wide_key, wide_value = self._widen(key[p:]), self._widen(value[p:])
        count = len(wide_key)
        if p:
            wide_key, wide_value = (
                torch.cat([x[:p].expand(count, -1, -1), wide], dim=1)
                for x, wide in ((key, wide_key), (value, wide_value))
            )
        if len(query) != len(key):
            asked = query[1 if p else 0 :]
            mask = self._single_mask(p, window)
            mixed = self._mix(asked[:, None], wide_key, wide_value, window, mask)[:, 0]
            return torch.cat([query[:1], mixed]) if p else mixed
        # causal and padded on the right: no token sees a pad, so no mask is needed for them
        mask = None if self._causal or self._full else self._there[:, None, None, :]
        mixed = self._mix(self._widen(query[p:]), wide_key, wide_value, window, mask)[self._there]
        if not p:
            return mixed
        own = self._mix(query[None, :p], key[None, :p], value[None, :p], window)[0]
        return torch.cat([own, mixed])

    def _single_mask(self, prefix: int, window: int | None) -> Tensor | None:
        """What the one asking token of each segment sees: [n, 1, 1, seen]."""
        if not self._causal:
            return None if self._full else self._there[:, None, None, :]
        at = self._ends[:, None] + prefix
        back = at - torch.arange(prefix + self._longest, device=self._device)
        seen = (back >= 0) if window is None else (back >= 0) & (back < window)
        return seen[:, None, None, :]

    def _widen(self, packed: Tensor) -> Tensor:
        wide = packed.new_zeros(*self._there.shape, packed.shape[1])
        wide[self._there] = packed
        return wide


def group_runs(segments: Sequence[Segment]) -> list[Run]:
    """Neighbouring segments of equal length and prefix; together the runs cover every row once."""
    starts = [0]
    for segment in segments:
        starts.append(starts[-1] + segment.length)
    runs: list[Run] = []
    number = 0
    for segment, group in groupby(segments):
        repeats = len(list(group))
        prefix = None
        if segment.prefix is not None:
            prefix = slice(starts[segment.prefix], starts[segment.prefix + 1])
        rows = slice(starts[number], starts[number + repeats])
        runs.append(Run(rows, slice(number, number + repeats), repeats, segment.length, prefix))
        number += repeats
    return runs
