"""Attention on CUDA: kernels for ragged sequences, and the test of an attention at load.

The plan's default there is the padded attention. The kernels are torch's own; each runs on some
devices and number formats only, and one is private. So whichever attention is planned is compared
at load with float32 on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bge_rerank_integrations.errors import RerankError
from bge_rerank_integrations.local.device import Attention, DevicePlan
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.torch_backend.attention import (
    Array,
    AttentionShape,
    BuildAttention,
    OnDevice,
    PaddedAttention,
    RunAttention,
    Segment,
    seen_rows,
)
from bge_rerank_integrations.local.torch_backend.runtime import to_device


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each sequence's queries and keys lie: running totals, [sequences + 1] int32."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A query's keys. With `causal` the last query of a sequence is at its last key."""

    causal: bool
    window: int | None
    scale: float | None


Kernel = Callable[[Tensor, Tensor, Tensor, Spans, Rule], Tensor]
"""[queries, heads, size] over [keys, kv heads, size], twice, to [queries, heads, size]."""


class FlatAttention:
    """One call of a kernel for ragged sequences; see `attention.PackedAttention`."""

    def __init__(
        self, segments: Sequence[Segment], shape: AttentionShape, *, kernel: Kernel
    ) -> None:
        self._shape, self._kernel = shape, kernel
        # a prefix is repeated before each segment that attends to it
        rows = seen_rows(segments)
        queries, keys = [s.length for s in segments], [len(seen) for seen in rows]
        self._most = max(queries), max(keys)
        self.arrays: Mapping[str, Array] = {
            "attention_queries": _running_totals(queries),
            "attention_ones": np.arange(len(segments) + 1, dtype=np.int32),
            "attention_keys": _running_totals(keys),
        }
        if queries != keys:
            self.arrays = {**self.arrays, "attention_rows": np.concatenate(rows)}

    def __call__(
        self, sent: OnDevice, query: Tensor, key: Tensor, value: Tensor, window: int | None = None
    ) -> Tensor:
        shape, single = self._shape, len(query) != len(key)
        if "attention_rows" in sent:
            key, value = (x[sent["attention_rows"]] for x in (key, value))
        spans = Spans(
            sent["attention_ones" if single else "attention_queries"],
            sent["attention_keys"],
            1 if single else self._most[0],
            self._most[1],
        )
        q, k, v = (
            x.view(len(x), heads, -1)
            for x, heads in ((query, shape.heads), (key, shape.kv_heads), (value, shape.kv_heads))
        )
        # a single query is the last token, so only a window hides keys from it
        causal = shape.causal and (not single or window is not None)
        return self._kernel(q, k, v, spans, Rule(causal, window, shape.scale)).reshape(query.shape)


def _running_totals(lengths: Sequence[int]) -> Array:
    return np.cumsum([0, *lengths]).astype(np.int32)


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
    ends, most = (spans.queries, spans.keys), (spans.most_queries, spans.most_keys)
    mixed: Any = varlen_attn(query, key, value, *ends, *most, **options)
    result: Tensor = mixed
    return result


# the operator's names of its masks: none, and causal aligned at the last query and key
NO_MASK, CAUSAL_FROM_THE_END = 0, 2


def efficient(query: Tensor, key: Tensor, value: Tensor, spans: Spans, rule: Rule) -> Tensor:
    """The memory-efficient kernel, also for float32 and old devices; private."""
    if query.shape[1] != key.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    mask = CAUSAL_FROM_THE_END if rule.causal else NO_MASK
    ends, most = (spans.queries, spans.keys), (spans.most_queries, spans.most_keys)
    options = {"scale": rule.scale, "window_size": rule.window}
    forward = torch.ops.aten._efficient_attention_forward  # noqa: SLF001
    mixed: Tensor = forward(
        query[None], key[None], value[None], None, *ends, *most, 0.0, mask, **options
    )[0]
    return mixed[0]


ATTENTIONS: Mapping[Attention, BuildAttention] = {
    "runs": RunAttention,
    "padded": PaddedAttention,
    "varlen": partial(FlatAttention, kernel=varlen),
    "efficient": partial(FlatAttention, kernel=efficient),
}

# Largest error, as a share of the largest value. Rounding stays well below it; a kernel that mixes
# sequences or sees one token too many or too few is off by a tenth or more.
LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}

SEGMENTS = tuple(Segment(length) for length in (3, 17, 1, 64, 130))
SEGMENTS_BEHIND_A_PREFIX = (Segment(19), *(Segment(length, 0) for length in (5, 40, 1, 40)))
SHORT_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Trial:
    """A test of an attention: the model's shape in its number format on its device."""

    shape: AttentionShape
    head_size: int
    windowed: bool
    dtype: torch.dtype
    device: str


def with_checked_attention(
    plan: DevicePlan, shape: AttentionShape, *, head_size: int, windowed: bool = False
) -> DevicePlan:
    """The plan; on CUDA with the error of its attention, see `check_attention`."""
    if not plan.device.startswith("cuda"):
        return plan
    trial = Trial(shape, head_size, windowed, getattr(torch, plan.dtype), plan.device)
    return plan.because(check_attention(plan.attention, ATTENTIONS[plan.attention], trial))


def check_attention(name: Attention, build: BuildAttention, trial: Trial) -> str:
    """Try an attention; the reason for the plan says how far it is off.

    Raises `RerankError` for one that does not run or is wrong. Memory that runs out says nothing
    about an attention, so it is raised unchanged.
    """
    # the caller's autocast would change the numbers
    kind = trial.device.partition(":")[0]
    try:
        with torch.inference_mode(), torch.autocast(kind, enabled=False):
            error = largest_error(build, trial)
    # raised by releases without such a kernel, or with another one
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as problem:
        if is_out_of_memory(problem):
            raise
        found = f"does not run ({type(problem).__name__})"
    else:
        if error <= LARGEST_ERROR[trial.dtype]:
            return f"attention {name}: tried now, off by {error:.1e}"
        found = f"is off by {error:.1e}"
    remedy = "leave attention out, or use attention='padded'"
    if name == "padded":
        remedy = "use device='cpu', and look at the driver and at torch's build"
    raise RerankError(
        f"attention {name!r} {found} on {trial.device} in {trial.dtype}: {remedy}"
    ) from None


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
    worst = []
    for asking in (query, query[: len(segments)]):
        right = exact({}, asking.float(), key.float(), value.float(), window)
        k, v = both.to(trial.device).chunk(2, dim=1)
        found = tried(sent, asking.to(trial.device), k, v, window).float().cpu()
        if found.shape != right.shape:
            raise ValueError(f"gives {tuple(found.shape)} instead of {tuple(right.shape)}")
        worst.append((found - right).abs().max() / right.abs().max())
    return float(torch.stack(worst).max())
