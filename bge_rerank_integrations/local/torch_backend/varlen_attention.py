"""Attention by a kernel that takes ragged sequences as they lie: no padding, one launch.

The kernels are torch's own, and each runs on some devices and number formats only; two are private
or prototypes. So `attention_choice.py` tries them before use, and none is required.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.local.device import Attention
from bge_rerank_integrations.local.torch_backend.attention import AttentionShape, Segment
from bge_rerank_integrations.local.torch_backend.transfer import Array


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each sequence's queries and keys lie: running totals, [sequences + 1] int32."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What a query sees. With `causal` the last query of a sequence stands at its last key."""

    causal: bool
    window: int | None
    scale: float | None


Kernel = Callable[[Tensor, Tensor, Tensor, Spans, Rule], Tensor]
"""[queries, heads, size] over [keys, kv heads, size], twice, to [queries, heads, size]."""


class FlatAttention:
    """See `attention.PackedAttention`."""

    def __init__(
        self,
        segments: Sequence[Segment],
        shape: AttentionShape,
        *,
        kernel: Kernel,
        most: int | None = None,
    ) -> None:
        """`most`: the longest sequence to prepare the kernel for; None: this batch's."""
        self._shape = shape
        self._kernel = kernel
        lengths = np.array([segment.length for segment in segments])
        ends = np.cumsum(lengths)
        # keys stand as often as they are seen, so a prefix once before each segment behind it
        before = [0 if s.prefix is None else segments[s.prefix].length for s in segments]
        self._repeated = any(before)
        arrays: dict[str, Array] = {
            "attention_queries": np.concatenate([[0], ends]).astype(np.int32),
            "attention_ones": np.arange(len(segments) + 1, dtype=np.int32),
        }
        if self._repeated:
            arrays["attention_keys"] = np.cumsum([0, *(lengths + before)]).astype(np.int32)
            arrays["attention_rows"] = np.concatenate(
                [
                    row
                    for number, s in enumerate(segments)
                    for row in (*_rows(segments, ends, s.prefix), *_rows(segments, ends, number))
                ]
            )
        self.arrays: Mapping[str, Array] = arrays
        self._most_queries = most or int(lengths.max())
        self._most_keys = most or int((lengths + before).max())

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
        shape, single = self._shape, len(query) != len(key)
        spans = Spans(
            sent["attention_ones" if single else "attention_queries"],
            sent["attention_keys" if self._repeated else "attention_queries"],
            1 if single else self._most_queries,
            self._most_keys,
        )
        if self._repeated:
            key, value = (x.index_select(0, sent["attention_rows"]) for x in (key, value))
        q, k, v = (
            x.view(len(x), heads, -1)
            for x, heads in ((query, shape.heads), (key, shape.kv_heads), (value, shape.kv_heads))
        )
        # one query stands at the end, from where it sees all that a window leaves
        causal = shape.causal and (not single or window is not None)
        return self._kernel(q, k, v, spans, Rule(causal, window, shape.scale)).reshape(query.shape)


def _rows(segments: Sequence[Segment], ends: Array, number: int | None) -> list[Array]:
    if number is None:
        return []
    return [np.arange(ends[number] - segments[number].length, ends[number])]


def varlen(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """FlashAttention inside torch, public since 2.10: half formats, compute capability 8.0 up."""
    from torch.nn.attention.varlen import varlen_attn

    # the first releases know fewer keywords, so only those that matter are given
    options: dict[str, Any] = {}
    if rule.causal:
        options["window_size"] = (-1 if rule.window is None else rule.window - 1, 0)
    if rule.scale is not None:
        options["scale"] = rule.scale
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    result: Any = varlen_attn(
        query,
        key,
        value,
        spans.queries,
        spans.keys,
        spans.most_queries,
        spans.most_keys,
        **options,
    )
    mixed: Tensor = result
    return mixed


# how the operator names its masks: no mask, and causal seen from the last query and key
NO_MASK, CAUSAL_FROM_THE_END = 0, 2


def efficient(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """The memory-efficient kernel: also float32 and old devices. Private, and so only on trial."""
    if query.shape[1] != key.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    mixed: Tensor = torch.ops.aten._efficient_attention_forward(  # noqa: SLF001
        query[None],
        key[None],
        value[None],
        None,
        spans.queries,
        spans.keys,
        spans.most_queries,
        spans.most_keys,
        0.0,
        CAUSAL_FROM_THE_END if rule.causal else NO_MASK,
        scale=rule.scale,
        window_size=rule.window,
    )[0]
    return mixed[0]


def nested(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """Nested tensors, a prototype; copies its input, which inference mode marks as its own."""
    if rule.causal:
        # seen at a model's trial alone, which passes this kernel over for one that can
        raise NotImplementedError("nested tensors count a causal mask from the first token")
    with torch.inference_mode(mode=False), torch.no_grad():
        q = _nest(query, spans.queries, spans.most_queries)
        k, v = (_nest(x, spans.keys, spans.most_keys) for x in (key, value))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=rule.scale)
        values: Tensor = mixed.transpose(1, 2).values()
    return values


def _nest(packed: Tensor, ends: Tensor, most: int) -> Tensor:
    jagged = torch.nested.nested_tensor_from_jagged(
        packed.clone(), ends.clone().long(), min_seqlen=1, max_seqlen=most
    )
    return jagged.transpose(1, 2)


KERNELS: dict[Attention, Kernel] = {"varlen": varlen, "efficient": efficient, "nested": nested}
