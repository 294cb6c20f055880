"""Attention over sequences that lie end to end.

A segment may follow a prefix: another segment that it attends to in full, computed once for all
segments that share it. `RunAttention` computes adjacent segments of equal length in one product,
without padding, which suits a CPU. `PaddedAttention` copies the batch into a rectangle: one large
product, which suits other devices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.torch_backend.linear import choose_gemm_path, linear

Array = np.ndarray[Any, Any]
OnDevice = Mapping[str, Tensor]
"""A batch's arrays on the device, by name."""

LONG = 1024
"""Tokens from which oneDNN's products are faster than torch's attention; at 512 it is a tie."""
BLOCK = 2**20
"""Products of queries and keys that a thread computes at once, 4 MB of them.

At most 16 MB are computed together, because malloc keeps a freed block of that size.
"""


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
        self, sent: OnDevice, query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        """Attention's output, [rows, heads * size], with a row per token or one per segment.

        One query per segment is that of its first token, or with `causal` of its last. With
        `window` a token sees only that many tokens. `sent` holds the arrays on the device.
        """
        ...


BuildAttention = Callable[[Sequence[Segment], AttentionShape], PackedAttention]


class RunAttention:
    """One product for each run of equal segments; see `PackedAttention`."""

    def __init__(self, segments: Sequence[Segment], shape: AttentionShape) -> None:
        self.arrays: Mapping[str, Array] = {}
        self._shape = shape
        starts = np.cumsum([0, *(segment.length for segment in segments)]).tolist()
        self._runs: list[SegmentRun] = []
        number = 0
        for segment, group in groupby(segments):
            end = number + len(list(group))
            prefix = None
            if segment.prefix is not None:
                prefix = slice(starts[segment.prefix], starts[segment.prefix + 1])
            rows = slice(starts[number], starts[end])
            self._runs.append(SegmentRun(rows, slice(number, end), prefix))
            number = end

    def __call__(
        self,
        sent: OnDevice,  # noqa: ARG002 - it needs no arrays
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None = None,
    ) -> Tensor:
        single = len(query) != len(key)
        mixed = []
        for run in self._runs:
            rows = run.segments if single else run.rows
            k, v = (run.seen(x) for x in (key, value))
            queries = query[rows].view(len(k), -1, query.shape[1])
            own = mix(self._shape, queries, k, v, window=window)
            mixed.append(own.reshape(-1, query.shape[1]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


@dataclass(frozen=True, slots=True)
class SegmentRun:
    """Adjacent segments of equal length and prefix: their rows and indices."""

    rows: slice
    segments: slice
    prefix: slice | None

    def seen(self, x: Tensor) -> Tensor:
        """The rows that each segment sees: [segments, rows, width]."""
        count = self.segments.stop - self.segments.start
        own = x[self.rows].view(count, -1, x.shape[1])
        if self.prefix is None:
            return own
        return torch.cat([x[self.prefix].expand(count, -1, -1), own], dim=1)


def mix(
    shape: AttentionShape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Queries [n, asking, heads * size] over keys [n, seen, kv_heads * size]; queries come last."""
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
    long = asking >= LONG and not shape.causal and mask is None and q.device.type == "cpu"
    if q.dtype == torch.float32 and asking == 1:
        mixed = _one_query(q, k, v, mask, shape.scale)
    elif long and _blocks_are_faster(q.dtype):
        mixed = _in_blocks(q, k, v, shape.scale)
    else:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=shape.scale
        )
    return mixed.transpose(1, 2).reshape(count, asking, width)


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of a single query row, [n, heads, 1, size].

    For a single row, torch's own adds the values of all tokens one after the other. In float32 that
    loses a digit at 8,192 tokens. `sum` adds them in blocks.
    """
    queries = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    products = queries @ k.transpose(-2, -1)
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf)
    return (torch.softmax(products, dim=-1).transpose(-2, -1) * v).sum(dim=-2, keepdim=True)


@cache
def _blocks_are_faster(dtype: torch.dtype) -> bool:
    """Whether this CPU computes a long sequence faster in `_in_blocks` than in torch's attention.

    Without AMX torch's takes as long in half precision as in float32, in smaller products.
    """
    if choose_gemm_path(torch.float32)[0] != "onednn":
        return False
    read = getattr(torch.cpu, "get_capabilities", None)  # earlier releases of torch lack it
    return dtype == torch.float32 or (read is not None and not read().get("amx_bf16"))


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Attention of one head at a time, a block of its rows in two float32 products of oneDNN's."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    at_once = max(1, BLOCK * min(4, torch.get_num_threads()) // k.shape[2])
    mixed = torch.empty_like(q)  # with q's strides, so that the heads of a token stay side by side
    for i, head in product(range(q.shape[0]), range(q.shape[1])):
        keys, values = (x[i, head].float().contiguous() for x in (k, v))
        # dense before the transpose, which torch then copies in tiles, in a fifth of the time
        compare, collect = (linear(x.contiguous(), None, "onednn") for x in (keys, values.t()))
        asked = q[i, head].float() * factor
        for rows in torch.split(asked, at_once):
            products = compare(rows)
            rows.copy_(collect(torch.softmax(products, dim=-1, out=products)))
            del products  # the next block takes the same memory
        mixed[i, head] = asked
    return mixed


def _causal_mask(asking: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    at = torch.arange(seen - asking, seen, device=device)[:, None]
    back = at - torch.arange(seen, device=device)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def seen_rows(segments: Sequence[Segment]) -> list[Array]:
    """The rows that each segment sees: those of its prefix, then its own."""
    ends = np.cumsum([segment.length for segment in segments])
    own = [np.arange(end - s.length, end) for s, end in zip(segments, ends, strict=True)]
    return [
        rows if segment.prefix is None else np.concatenate([own[segment.prefix], rows])
        for segment, rows in zip(segments, own, strict=True)
    ]


class PaddedAttention:
    """One product over [segments, longest]; see `PackedAttention`.

    A segment is padded on the right with its own last row: zeros would do as well, another
    segment's row could be infinite.
    """

    def __init__(self, segments: Sequence[Segment], shape: AttentionShape) -> None:
        rows = seen_rows(segments)
        lengths = np.array([len(seen) for seen in rows])
        places = np.arange(lengths.max())
        there = places < lengths[:, None]
        own = there & (places >= lengths[:, None] - [[segment.length] for segment in segments])
        self._shape = shape
        self._full = bool(there.all())
        # places by number: a mask as an index would make the host wait for the device
        self.arrays: Mapping[str, Array] = {
            "attention_rows": np.stack([seen[np.minimum(places, len(seen) - 1)] for seen in rows]),
            "attention_there": there,
            "attention_own": np.flatnonzero(own),
            "attention_last": lengths - 1,
        }

    def __call__(
        self, sent: OnDevice, query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        rows = sent["attention_rows"]
        single = len(query) != len(key)
        queries = query[:, None] if single else query[rows]
        mask = self._mask(sent, window, single=single)
        mixed = mix(self._shape, queries, key[rows], value[rows], window=window, mask=mask)
        mixed = mixed.view(-1, query.shape[1])
        return mixed if single else mixed[sent["attention_own"]]

    def _mask(self, sent: OnDevice, window: int | None, *, single: bool) -> Tensor | None:
        """The keys that a segment's queries see, [n, 1, 1, longest]; None where `mix` knows."""
        if self._shape.causal and not single:
            return None  # no token sees the padding, which follows it
        there = sent["attention_there"]
        if self._shape.causal and window is not None:
            places = torch.arange(there.shape[1], device=there.device)
            there = there & (sent["attention_last"][:, None] - places < window)
        elif self._full:
            return None
        return there[:, None, None, :]
