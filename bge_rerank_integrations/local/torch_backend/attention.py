"""Attention over sequences that lie end to end, without work for padding.

A segment may stand behind a prefix: another segment that it sees in full, computed once for all
that share it. `"runs"`, here, computes neighbouring segments of equal length at once, which suits
a CPU; `padded_attention.py` and `flat_attention.py` have those for accelerators.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.torch_backend.transfer import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """So many tokens in a row; `prefix` is the index of the segment they stand behind."""

    length: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a model's attention is, for any batch.

    `heads` share `kv_heads` groups of keys and values. With `causal` a token sees itself and what
    is before it. `scale` is that of the products; None: one over the root of a head's size.
    """

    heads: int
    kv_heads: int
    causal: bool
    scale: float | None


class PackedAttention(Protocol):
    """Scaled dot-product attention of one packed batch, for every layer of a model."""

    @property
    def arrays(self) -> Mapping[str, Array]:
        """What it needs on the device, to travel with the batch."""
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
        """Mix the values: [rows, heads * size], a row per token or one per segment.

        A query of one row per segment is that of its first token, or with `causal` of its last.
        With `window` a token sees only that many tokens. `sent` has the arrays, on the device.
        """
        ...


BuildAttention = Callable[[Sequence[Segment], AttentionShape], PackedAttention]


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring segments of equal length and prefix: their rows, numbers and measures."""

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


def _with_prefix(own: Tensor, every: Tensor, run: Run) -> Tensor:
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
