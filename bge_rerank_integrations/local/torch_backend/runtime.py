"""A forward on torch, and the state that this process shares with torch: memory and threads."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bge_rerank_integrations.base.deadline import thread_settings
from bge_rerank_integrations.base.fork import cached_property
from bge_rerank_integrations.errors import RerankError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan, bytes_per_token, token_budget
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.linear import GemmPath, Linear, choose_gemm_path
from bge_rerank_integrations.types import FloatArray


class TorchForward(ABC):
    """One model on one device; see `engine.Forward`. `use` says how a subclass uses the model."""

    padded = False
    max_sequences: int | None = None

    def __init__(
        self, checkpoint: Checkpoint, plan: DevicePlan, use: Any, *, batches_at_once: int
    ) -> None:
        """`batches_at_once` is for a CPU: other devices run one batch at a time."""
        refuse_modes()
        survive_forks()
        self.plan = plan
        self.concurrency = batches_at_once if plan.device == "cpu" else 1
        self._checkpoint = checkpoint
        self._use = use

    @abstractmethod
    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        """See `engine.Forward`."""
        ...

    @cached_property
    def exact(self) -> "TorchForward":
        """The same model in float32, for rows that overflowed in a half format."""
        if self.plan.precision == "fp32":
            return self
        self._checkpoint.check_unchanged()
        twin: Any = type(self)
        with torch.device("cpu"):  # the caller's default must not count
            found: TorchForward = twin(self._checkpoint, exact_plan(self.plan), self._use)
        return found

    def release_memory(self) -> None:
        """Give memory that torch's cache holds unused back to the device; nothing on a CPU."""
        kind = self.plan.device.partition(":")[0]
        if kind in ("cuda", "xpu", "mps"):
            getattr(torch, kind).empty_cache()


def to_device(arrays: Mapping[str, Any], device: str) -> dict[str, Tensor]:
    """The numpy arrays as tensors on the device, by the same names."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def with_token_budget(plan: DevicePlan, layer: Linear, *, inner_copies: int) -> DevicePlan:
    """The plan with batches that fit a CUDA device's free memory now; unchanged elsewhere.

    `layer` is the first one of a feed-forward part, which widens a token's vector.
    """
    if not plan.device.startswith("cuda"):
        return plan
    inner, hidden = layer.weight.shape
    # under autocast many values exist twice, in float32 and in half
    each = 6 if plan.autocast else weight_format(plan).itemsize
    per_token = bytes_per_token(hidden, inner, inner_copies=inner_copies, bytes_each=each)
    free = free_memory(plan.device)
    budget = token_budget(free, per_token, most=plan.max_batch_tokens)
    reason = (
        f"batches of {budget} tokens: each takes about {per_token / 1e3:.0f} kB at the peak, and "
        f"{free / 1e9:.1f} GB are free with the weights loaded"
    )
    return replace(plan, max_batch_tokens=budget).because(reason)


def free_memory(device: str) -> int:
    """Unused bytes of a CUDA device, including those in torch's cache."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def weight_format(plan: DevicePlan) -> torch.dtype:
    """The number format weights are held in: autocast keeps them in float32."""
    dtype: torch.dtype = torch.float32 if plan.autocast else getattr(torch, plan.dtype)
    return dtype


def with_gemm_path(plan: DevicePlan) -> tuple[DevicePlan, GemmPath]:
    """How matrix products are computed, and the plan with the reason."""
    path: GemmPath = "plain"
    reason = "gemm plain: oneDNN's prepacked weights are for the CPU, without autocast"
    if plan.device == "cpu" and not plan.autocast:
        path, reason = choose_gemm_path(weight_format(plan))
    return plan.because(reason), path


def exact_plan(plan: DevicePlan) -> DevicePlan:
    """The same device in float32, in an attention that has it."""
    flat = plan.attention in ("varlen", "efficient")
    attention = "padded" if flat else plan.attention
    return replace(plan, dtype="float32", autocast=False, attention=attention)


@contextmanager
def arithmetic(plan: DevicePlan) -> Iterator[None]:
    """Compute without gradients, under the plan's autocast or none, never under the caller's.

    Raises `RerankError` if a setting of the caller's keeps torch from computing.
    """
    refuse_modes()
    kind = plan.device.partition(":")[0]
    dtype = getattr(torch, plan.dtype) if plan.autocast else None
    try:
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=plan.autocast):
            yield
    except RuntimeError as error:
        if "No viable backend for scaled_dot_product_attention" not in str(error):
            raise
        raise RerankError(
            "this process has turned off every implementation of torch's attention: turn one on, "
            "with torch.backends.cuda.enable_math_sdp(True)"
        ) from error


def refuse_modes() -> None:
    """Raise `RerankError` in a mode of this thread in which tensors have no numbers."""
    probe = torch.empty(1, device="cpu")
    try:
        computes = type(probe) is Tensor and probe.data_ptr()
    except RuntimeError:
        computes = False
    if not computes:
        raise RerankError(
            "torch computes no numbers on this thread, in FakeTensorMode or inside torch.func: "
            "load and score outside it, or on another thread"
        )


def to_host(rows: Tensor) -> FloatArray:
    """The rows as a float32 array; waits for the device."""
    found: FloatArray = rows.float().cpu().numpy()
    return found


def _copy_thread_count() -> Callable[[], object]:
    """See `deadline.thread_settings`: torch keeps its number of threads per thread."""
    threads = torch.get_num_threads()

    def copy() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return copy


thread_settings.append(_copy_thread_count)


@cache
def survive_forks() -> None:
    """Make torch usable in children forked from now on, with one thread each.

    OpenMP's threads do not exist in a forked child, which would wait for them forever. Called
    when a model is loaded, so that processes that only import this package keep their threads.
    """
    if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
