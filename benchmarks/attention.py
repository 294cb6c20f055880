"""Each attention by itself on a device: what the self-test at load sees, and its time."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.models import Shape
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    BuildAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.cuda_attention import (
    ATTENTIONS,
    Trial,
    largest_error,
)
from bge_rerank_integrations.local.torch_backend.runtime import to_device


def try_attentions(shape: Shape, device: str, *, tokens: int) -> dict[str, dict[str, Any]]:
    """Each attention in both formats: "error", as at load, and "milliseconds" for a layer.

    Or the "problem", where it does not run. The time is that of one batch of so many tokens.
    """
    heads = AttentionShape(shape.heads, shape.heads, causal=False, scale=None)
    lengths = [64, 96, 128, 224] * (tokens // 512) or [tokens]
    found: dict[str, dict[str, Any]] = {}
    for dtype in (torch.float16, torch.float32):
        trial = Trial(
            heads, shape.hidden // shape.heads, windowed=False, dtype=dtype, device=device
        )
        for name, build in ATTENTIONS.items():
            key = f"{name} {str(dtype).removeprefix('torch.')}"
            try:
                with torch.inference_mode():
                    error = largest_error(build, trial)
                    layer = _attention_seconds(build, heads, lengths, trial)
            except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as problem:
                found[key] = {"problem": f"{type(problem).__name__}: {str(problem)[:80]}"}
            else:
                found[key] = {"error": error, "milliseconds": 1000 * layer}
    return found


def _attention_seconds(
    build: BuildAttention, shape: AttentionShape, lengths: Sequence[int], trial: Trial
) -> float:
    attend = build([Segment(length) for length in lengths], shape)
    sent = to_device(attend.arrays, trial.device)
    size = (sum(lengths), shape.heads * trial.head_size)
    vectors = torch.randn(size, device=trial.device, dtype=trial.dtype)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        attend(sent, vectors, vectors, vectors)[0, 0].item()  # which waits for the device
        times.append(time.perf_counter() - begin)
    return min(times)
