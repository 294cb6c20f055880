"""Attention by a kernel for ragged sequences, without padding, and the choice of an attention.

The kernels are torch's own, and each runs on some devices and number formats only; two are private
or prototypes. So none is required: at load a device gets the first of the fast ones that computes
the right numbers there. A kernel that is missing, fails or gives wrong numbers is skipped, and the
plan says why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.errors import RerankError
from bge_rerank_integrations.local.device import Attention, DevicePlan
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    BuildAttention,
    PackedAttention,
    PaddedAttention,
    RunAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.runtime import is_out_of_memory
from bge_rerank_integrations.local.torch_backend.transfer import Array, to_device


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each sequence's queries and keys lie: running totals, [sequences + 1] int32."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A query's keys. With `causal` the last query of a sequence stands at its last key."""

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
        # a prefix is repeated before each segment that attends to it
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
        # a single query is the last token, so only a window hides keys from it
        causal = shape.causal and (not single or window is not None)
        return self._kernel(q, k, v, spans, Rule(causal, window, shape.scale)).reshape(query.shape)


def _rows(segments: Sequence[Segment], ends: Array, number: int | None) -> list[Array]:
    if number is None:
        return []
    return [np.arange(ends[number] - segments[number].length, ends[number])]


def varlen(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """FlashAttention inside torch, public since 2.10: half formats, compute capability 8.0 up."""
    from torch.nn.attention.varlen import varlen_attn

    # the first releases have fewer keywords, so only the needed ones are passed
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


# the operator's names of its masks: none, and causal aligned at the last query and key
NO_MASK, CAUSAL_FROM_THE_END = 0, 2


def efficient(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """The memory-efficient kernel, also for float32 and old devices; private, so tried first."""
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
    """Nested tensors, a prototype, outside inference mode and so on copies of the inputs."""
    if rule.causal:
        # raised only while candidates are tried: the next one is used
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


ATTENTIONS: dict[Attention, BuildAttention] = {
    "runs": RunAttention,
    "padded": PaddedAttention,
    **{name: partial(FlatAttention, kernel=kernel) for name, kernel in KERNELS.items()},
}
# by kind of device, fastest first; other devices have one attention, named by their plan
CANDIDATES: dict[str, tuple[Attention, ...]] = {"cuda": ("varlen", "efficient", "nested", "padded")}

# Largest error, as a share of the largest value. Rounding stays well below it; a kernel that mixes
# sequences or sees one token too many or too few is off by a tenth or more.
LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}

SEGMENTS = tuple(Segment(length) for length in (3, 17, 1, 64, 130))
SEGMENTS_BEHIND_A_PREFIX = (Segment(19), *(Segment(length, 0) for length in (5, 40, 1, 40)))
SHORT_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Trial:
    """A test of a candidate: the model's attention in its number format on its device."""

    shape: AttentionShape
    head_size: int
    windowed: bool
    dtype: torch.dtype
    device: str


def lay_out(segments: Sequence[Segment], shape: AttentionShape, kind: Attention) -> PackedAttention:
    """The attention of one packed batch."""
    return ATTENTIONS[kind](segments, shape)


def with_attention(
    plan: DevicePlan, shape: AttentionShape, *, head_size: int, windowed: bool = False
) -> DevicePlan:
    """The plan with an attention that is correct for this model on its device, and the reasons."""
    names = CANDIDATES.get(plan.device.partition(":")[0])
    if names is None:
        return plan
    trial = Trial(shape, head_size, windowed, getattr(torch, plan.dtype), plan.device)
    chosen, reasons = choose_attention({name: ATTENTIONS[name] for name in names}, trial)
    return replace(plan, attention=chosen, reasons=(*plan.reasons, *reasons))


def choose_attention(
    candidates: Mapping[Attention, BuildAttention], trial: Trial
) -> tuple[Attention, tuple[str, ...]]:
    """The first candidate with correct results, and one line about each candidate tried.

    Raises `RerankError` if none is correct. Running out of memory is raised unchanged, because it
    says nothing about a candidate.
    """
    reasons: list[str] = []
    for name, build in candidates.items():
        # the caller's autocast would change the numbers
        kind = trial.device.partition(":")[0]
        try:
            with torch.inference_mode(), torch.autocast(kind, enabled=False):
                error = largest_error(build, trial)
        except (
            # raised by releases without such a kernel, or with another one
            AttributeError,
            ImportError,
            RuntimeError,
            TypeError,
            ValueError,
            Warning,
        ) as problem:
            if is_out_of_memory(problem):
                raise
            reasons.append(f"attention not {name}: it does not run ({type(problem).__name__})")
            continue
        if error <= LARGEST_ERROR[trial.dtype]:
            return name, (*reasons, f"attention {name}: tried now, off by {error:.1e}")
        reasons.append(f"attention not {name}: tried now, off by {error:.1e}")
    raise RerankError(
        f"no attention computes right on {trial.device} in {trial.dtype}: {'; '.join(reasons)}; "
        "use device='cpu', and look at the driver and at torch's build"
    )


def largest_error(build: BuildAttention, trial: Trial) -> float:
    """Largest difference from float32 on the CPU, as a share of the largest value; may be NaN."""
    ways: list[tuple[Sequence[Segment], int | None]] = [(SEGMENTS, None)]
    if trial.shape.causal:
        ways.append((SEGMENTS_BEHIND_A_PREFIX, None))
    if trial.windowed:
        ways += [(segments, SHORT_WINDOW) for segments, _ in ways]
    # Python's max() may drop a NaN
    errors = [_error(build, trial, segments, window) for segments, window in ways]
    return float(torch.tensor(errors).max())


def _error(
    build: BuildAttention, trial: Trial, segments: Sequence[Segment], window: int | None
) -> float:
    shape = trial.shape
    rows = sum(segment.length for segment in segments)
    generator = torch.Generator().manual_seed(0)
    query, both = (
        torch.randn(rows, heads * trial.head_size, generator=generator).to(trial.dtype)
        for heads in (shape.heads, 2 * shape.kv_heads)
    )
    # as in the models: keys and values are the halves of one product
    key, value = both.chunk(2, dim=1)
    exact, tried = RunAttention(segments, shape), build(segments, shape)
    sent = to_device(tried.arrays, trial.device)
    # the prefix's own row is not used
    unread = 1 if any(segment.prefix is not None for segment in segments) else 0
    worst = []
    for asking, first in ((query, 0), (query[: len(segments)], unread)):
        right = exact({}, asking.float(), key.float(), value.float(), window=window)
        k, v = both.to(trial.device).chunk(2, dim=1)
        found = tried(sent, asking.to(trial.device), k, v, window=window).float().cpu()
        worst.append(_share(found[first:], right[first:]))
    return float(torch.stack(worst).max())


def _share(found: Tensor, right: Tensor) -> Tensor:
    if found.shape != right.shape:
        raise ValueError(f"gives {tuple(found.shape)} instead of {tuple(right.shape)}")
    return (found - right).abs().max() / right.abs().max()
