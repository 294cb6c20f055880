"""Which attention a device gets: the first of the fast ones that computes right on it, tried now.

Nothing is taken on trust from a version or a device's name: a kernel that does not exist, does not
run, or gives wrong numbers here is passed over, and the plan says why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bge_rerank_integrations.errors import RerankError
from bge_rerank_integrations.local.device import Attention, DevicePlan
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    BuildAttention,
    PackedAttention,
    RunAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.padded_attention import PaddedAttention
from bge_rerank_integrations.local.torch_backend.runtime import is_out_of_memory
from bge_rerank_integrations.local.torch_backend.transfer import to_device
from bge_rerank_integrations.local.torch_backend.varlen_attention import KERNELS, FlatAttention

ATTENTIONS: dict[Attention, BuildAttention] = {
    "runs": RunAttention,
    "padded": PaddedAttention,
    **{name: partial(FlatAttention, kernel=kernel) for name, kernel in KERNELS.items()},
}
# by kind of device, the fastest first; a device that is not here has one, which its plan names
CANDIDATES: dict[str, tuple[Attention, ...]] = {"cuda": ("varlen", "efficient", "nested", "padded")}

# Largest error, as a share of the largest value. Rounding stays well below; a kernel that mixes
# sequences up, or sees one token more or less than it should, is off by a tenth and more.
LARGEST_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}

SEGMENTS = tuple(Segment(length) for length in (3, 17, 1, 64, 130))
SEGMENTS_BEHIND_A_PREFIX = (Segment(19), *(Segment(length, 0) for length in (5, 40, 1, 40)))
SHORT_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate has to compute: a model's attention, in its number format, on its device."""

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
    """The plan with the attention that works for this model on its device, and why."""
    names = CANDIDATES.get(plan.device.partition(":")[0])
    if names is None:
        return plan
    trial = Trial(shape, head_size, windowed, getattr(torch, plan.dtype), plan.device)
    chosen, reasons = choose_attention({name: ATTENTIONS[name] for name in names}, trial)
    return replace(plan, attention=chosen, reasons=(*plan.reasons, *reasons))


def choose_attention(
    candidates: Mapping[Attention, BuildAttention], trial: Trial
) -> tuple[Attention, tuple[str, ...]]:
    """The first candidate that gives the right numbers, and a line about it and each before it.

    Raises `RerankError` if none does. Memory that runs out comes through: it says nothing about a
    candidate.
    """
    reasons: list[str] = []
    for name, build in candidates.items():
        # the caller may be inside an autocast of its own, which would change the numbers
        kind = trial.device.partition(":")[0]
        try:
            with torch.inference_mode(), torch.autocast(kind, enabled=False):
                error = largest_error(build, trial)
        except (
            # whatever releases without such a kernel, or with another, raise when asked for it
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
    """Largest difference to float32 on the CPU, as a share of the largest value; may be NaN."""
    ways: list[tuple[Sequence[Segment], int | None]] = [(SEGMENTS, None)]
    if trial.shape.causal:
        ways.append((SEGMENTS_BEHIND_A_PREFIX, None))
    if trial.windowed:
        ways += [(segments, SHORT_WINDOW) for segments, _ in ways]
    # a NaN must not lose against a number, so no max()
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
    # as in the models, where keys and values are the halves of one product
    key, value = both.chunk(2, dim=1)
    exact, tried = RunAttention(segments, shape), build(segments, shape)
    sent = to_device(tried.arrays, trial.device)
    # nobody reads what one query of a prefix gives
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
