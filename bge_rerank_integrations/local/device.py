"""Where a model runs, in which number format and batch size: decided once, with reasons.

`read_hardware` asks torch for the machine's devices. `plan_device` is a pure function of its
answer, so it is tested without a GPU.
"""

import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import numpy as np

from bge_rerank_integrations.base.html import html_table
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.options import DeviceOptions
from bge_rerank_integrations.types import CudaAttention, Precision

Dtype = Literal["float32", "float16", "bfloat16"]
Attention = CudaAttention | Literal["runs"]

logger = logging.getLogger("bge_rerank_integrations")

# Measured on CPU: below 1k tokens the matrices are too small, above 4k the activations leave the
# cache. The accelerators' figure is an estimate from memory per token (about 20 kB).
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One device of the `torch.cuda` API: NVIDIA's, or AMD's under ROCm."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine's devices, as torch reports them."""

    cores: int
    cpu_bf16: bool | None = False
    """None: this release of torch cannot tell, so bf16 is not used on the CPU."""
    cuda: tuple[CudaDevice, ...] = ()
    rocm: bool = False
    xpu: int = 0
    mps: bool = False


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The decisions about one device, with the reasons; print it."""

    device: str
    dtype: Dtype
    autocast: bool
    attention: Attention
    max_batch_tokens: int
    reasons: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The number format of the forward pass in one word."""
        word = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[self.dtype]
        return f"{word}-autocast" if self.autocast else word

    @property
    def arithmetic(self) -> str:
        """The number format, and the kernels where scores depend on them, as in `Scorer.name`."""
        usual = self.attention in ("runs", "padded")
        return self.precision if usual else f"{self.precision}-{self.attention}"

    def because(self, *reasons: str) -> "DevicePlan":
        """The same plan with more reasons."""
        return replace(self, reasons=(*self.reasons, *reasons))

    @property
    def paths(self) -> str:
        """The reasons that name the code paths: those that run, and why a faster one does not."""
        kinds = ("forward ", "gemm ", "attention ", "threads: ")
        return "; ".join(reason for reason in self.reasons if reason.startswith(kinds))

    def __str__(self) -> str:
        head = (
            f"{self.device}, {self.precision}, {self.attention} attention, "
            f"batches of {self.max_batch_tokens} tokens"
        )
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])

    def _repr_html_(self) -> str:
        """A table for a notebook: the decisions, then the reasons."""
        decided = [
            ("device", self.device),
            ("precision", self.precision),
            ("attention", self.attention),
            ("tokens in a batch", self.max_batch_tokens),
            *(("reason", reason) for reason in self.reasons),
        ]
        return html_table(["", ""], decided)


def plan_device(
    hardware: Hardware,
    *,
    device: str | None = None,
    precision: Precision = "auto",
    attention: CudaAttention | None = None,
    prefer: Literal["fp16", "bf16"] = "fp16",
) -> DevicePlan:
    """Decide device, number format, attention path and batch budget.

    `prefer` is the family's half format, the default where it is native: values of the LLM
    rerankers may exceed fp16's range.

    Raises `InvalidInputError` for a missing device, naming the available ones, and for an attention
    that only CUDA has. A half precision that the device cannot run becomes float32, which is more
    exact: the plan and a warning say so.
    """
    check_precision(precision)
    chosen, reason = _choose_device(hardware, device)
    kind = chosen.partition(":")[0]
    wanted, why = _choose_precision(hardware, chosen, precision, prefer)
    reasons = [reason, why]
    if kind != "cpu":
        reasons.append("not run on a GPU by its authors: compare scores with bge-rerank verify")
    if attention is not None and kind != "cuda":
        raise InvalidInputError(
            f"attention is {attention!r}, and {chosen} has no other than its own: leave it out, or "
            "use a CUDA device"
        )
    formats: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    return DevicePlan(
        device=chosen,
        dtype=formats[wanted.removesuffix("-autocast")],
        autocast=wanted.endswith("-autocast"),
        attention=attention or ("runs" if kind == "cpu" else "padded"),
        max_batch_tokens=CPU_BATCH_TOKENS if kind == "cpu" else ACCELERATOR_BATCH_TOKENS,
        reasons=tuple(reasons),
    )


def plan_devices(
    hardware: Hardware, options: DeviceOptions, *, prefer: Literal["fp16", "bf16"] = "fp16"
) -> list[DevicePlan]:
    """One plan per device; see `plan_device`.

    Also raises `InvalidInputError` for an empty list, and for devices that would compute in
    different number formats: a pair's score would depend on which of them was free.
    """
    plans = [
        plan_device(
            hardware,
            device=device,
            precision=options.precision,
            attention=options.attention,
            prefer=prefer,
        )
        for device in _devices(options)
    ]
    if not plans:
        raise InvalidInputError(
            "device is an empty list; name the devices, or leave it out for one that is chosen"
        )
    if len({plan.precision for plan in plans}) > 1:
        formats = ", ".join(f"{plan.device} in {plan.precision}" for plan in plans)
        raise InvalidInputError(
            f"the devices would compute in different number formats ({formats}), and scores would "
            "depend on which was free; choose a precision that all have, such as 'fp32'"
        )
    return plans


def check_devices(hardware: Hardware, options: DeviceOptions) -> None:
    """Raise `InvalidInputError` for a missing device, before a model is downloaded."""
    for device in _devices(options):
        _choose_device(hardware, device)


def _devices(options: DeviceOptions) -> Sequence[str | None]:
    given = options.device
    return [given] if given is None or isinstance(given, str) else given


def check_precision(precision: str) -> None:
    """Raise `InvalidInputError` for a precision that does not exist."""
    if precision not in get_args(Precision):
        raise InvalidInputError(
            f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}"
        )


def _choose_device(hardware: Hardware, device: str | None) -> tuple[str, str]:
    there = ["cpu"]
    there += [f"cuda:{number}" for number in range(len(hardware.cuda))]
    there += [f"xpu:{number}" for number in range(hardware.xpu)]
    there += ["mps"] if hardware.mps else []
    if device is not None and device != "auto":
        full = f"{device}:0" if device in ("cuda", "xpu") else device
        if full not in there:
            raise InvalidInputError(
                f"device {device!r} is not available here; available: {', '.join(there)}"
            )
        return full, f"device {full}: requested"
    if hardware.cuda:
        kind = "ROCm" if hardware.rocm else "CUDA"
        return "cuda:0", f"device cuda:0: first {kind} device ({hardware.cuda[0].name})"
    if hardware.xpu:
        return "xpu:0", "device xpu:0: first XPU"
    if hardware.mps:
        # torch's MPS caches a graph per input shape without bound and aborts the process when two
        # threads use it, so it must be requested.
        return "cpu", "device cpu: MPS is there but only used with device='mps'"
    return "cpu", f"device cpu: no accelerator found; {hardware.cores} cores"


def half_formats(hardware: Hardware, device: str) -> tuple[str, ...]:
    """Half formats that the device computes natively, the preferred first."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        major = hardware.cuda[int(number)].capability[0]
        if hardware.rocm or major >= 8:
            return ("fp16", "bf16")
        return ("fp16",) if major >= 7 else ()
    if kind == "xpu":
        return ("fp16", "bf16")
    if kind == "mps":
        return ("fp16",)
    return ("bf16",) if hardware.cpu_bf16 else ()


def _choose_precision(
    hardware: Hardware, device: str, precision: Precision, prefer: str
) -> tuple[str, str]:
    kind, half = device.partition(":")[0], half_formats(hardware, device)
    no_bf16 = "this CPU has no bf16 instructions"
    if hardware.cpu_bf16 is None:
        no_bf16 = "this torch cannot tell whether the CPU has bf16 instructions"
    if precision == "fp32":
        return "fp32", "precision fp32: requested"
    if precision == "auto":
        # encoders prefer fp16, which no CPU computes: they stay exact there
        if prefer in half and kind != "mps":
            return prefer, f"precision {prefer}: native here, this family's default on {kind}"
        if kind == "cpu" and prefer == "bf16":
            return "fp32", f"precision fp32: {no_bf16}"
        return "fp32", f"precision fp32: exact, the default on {kind}"
    if precision.removesuffix("-autocast") in half:
        return precision, f"precision {precision}: requested"
    if kind != "cpu":
        why = f"{precision} is not native on this {kind} device"
    elif precision.startswith("fp16"):
        why = f"{precision} is never used on a CPU"
    else:
        why = no_bf16
    _warn_once(f"{why}: scoring in fp32")
    return "fp32", f"precision fp32: {why}"


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s. Logged once per process.", message)


def read_hardware() -> Hardware:
    """Ask torch what this machine has."""
    import torch

    cuda = tuple(
        CudaDevice(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i))
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    )
    xpu = torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
    return Hardware(
        cores=os.cpu_count() or 1,
        cpu_bf16=_cpu_has_bf16(),
        cuda=cuda,
        rocm=torch.version.hip is not None,
        xpu=xpu,
        mps=torch.backends.mps.is_available(),
    )


def cpu_kernels() -> str:
    """The instruction set by which libraries choose kernels: avx512, avx2 or the architecture."""
    known = np.show_config(mode="dicts")["SIMD Extensions"]
    there = {*known.get("baseline", ()), *known.get("found", ())}
    # X86_V4 and X86_V3 are numpy 2.4's names for the groups of instructions that hold these
    if there & {"AVX512F", "AVX512_SKX", "X86_V4"}:
        return "avx512"
    return "avx2" if there & {"AVX2", "X86_V3"} else platform.machine().lower()


def _cpu_has_bf16() -> bool | None:
    import torch

    # private and missing in some releases, without a public equivalent
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return None if probe is None else bool(probe())


def token_budget(free: int, bytes_per_token: int, *, most: int) -> int:
    """Tokens that a batch may hold: at most `most`, whole thousands (1024), at least one.

    They get 0.6 of the free memory: the rest is for fragments, kernels and other processes.
    """
    return max(1024, min(most, int(0.6 * free / bytes_per_token) // 1024 * 1024))


def bytes_per_token(hidden: int, inner: int, *, inner_copies: int, bytes_each: int) -> int:
    """Bytes that a token takes at a layer's peak.

    In the feed-forward part, two vectors of `hidden` and `inner_copies` of the widened one are
    alive at once; in attention, about eight of `hidden`.
    """
    return max(2 * hidden + inner_copies * inner, 8 * hidden) * bytes_each
