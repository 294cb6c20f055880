"""Matrix products: oneDNN with prepacked weights where it is correct and faster, else torch's own.

On AMD processors torch's default product (MKL) is less than half as fast as the oneDNN in the same
wheel; everywhere oneDNN fuses the activation into the product. The operators are private, so they
are tried on real shapes before use and never required.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GemmPath = Literal["onednn", "plain"]
LayerActivation = Literal["none", "gelu", "gelu_tanh", "relu", "silu"]

PLAIN: dict[LayerActivation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
# oneDNN's name and algorithm for each activation that it fuses
FUSED: dict[LayerActivation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
# number of rows that the packed layout is tuned for; results do not depend on it
HINT = 2048
# bytes of a cache line, to which torch aligns its own tensors
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Linear:
    """activation(x @ weight.T + bias); the weight has the layout of `path`."""

    weight: Tensor
    bias: Tensor | None
    activation: LayerActivation
    path: GemmPath

    def __call__(self, x: Tensor) -> Tensor:
        if self.path == "plain":
            return PLAIN[self.activation](F.linear(x, self.weight, self.bias))
        name, algorithm = FUSED[self.activation]
        result: Tensor = _onednn().linear(x, self.weight, self.bias, name, [], algorithm)
        return result


def linear(
    weight: Tensor, bias: Tensor | None, path: GemmPath, activation: LayerActivation = "none"
) -> Linear:
    """A layer over this weight, which is packed, and so copied, for oneDNN."""
    packed = _onednn().pack(weight, HINT) if path == "onednn" else aligned(weight)
    return Linear(packed, bias, activation, path)


def aligned(weight: Tensor) -> Tensor:
    """The same numbers at an aligned address.

    A mapped tensor's address depends on its place in the file, and on some processors the last bit
    of a product depends on the address: the same weights in another file would give other scores.
    """
    return weight.clone() if weight.data_ptr() % ALIGNMENT else weight


@dataclass(frozen=True, slots=True)
class _OneDnn:
    pack: Callable[..., Any]
    linear: Callable[..., Any]


@cache
def _onednn() -> _OneDnn:
    ops = torch.ops.mkldnn
    # private, with no public equivalent: hence the probe below
    return _OneDnn(ops._reorder_linear_weight, ops._linear_pointwise)  # noqa: SLF001


@cache
def choose_gemm_path(dtype: torch.dtype) -> tuple[GemmPath, str]:
    """The path for this CPU, and the reason: one numeric and one timing probe of a few ms."""
    # the caller's autocast would change both sides
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return _probe(dtype)


def _probe(dtype: torch.dtype) -> tuple[GemmPath, str]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((256, 384), (768, 384), (768,))
    )
    exact = F.linear(x.float(), weight.float(), bias.float())
    plain = linear(weight, bias, "plain", "gelu")
    try:
        packed = linear(weight, bias, "onednn", "gelu")
        error = max(
            _share_of_largest(replace(packed, activation=activation)(x), PLAIN[activation](exact))
            for activation in FUSED
        )
    except (AttributeError, RuntimeError, TypeError) as problem:
        # raised by releases without these operators, or with other ones
        return "plain", f"gemm plain: oneDNN's operators do not run ({type(problem).__name__})"
    if not error < (1e-5 if dtype == torch.float32 else 2e-2):
        return "plain", f"gemm plain: oneDNN's result is off by {error:.1e}"
    share = _seconds(packed, x) / _seconds(plain, x)
    path: GemmPath = "onednn" if share < 1 else "plain"
    return path, f"gemm {path}: measured now, oneDNN takes {share:.2f} of torch's own time"


def _share_of_largest(result: Tensor, right: Tensor) -> float:
    """The largest error, as a share of the largest result."""
    return float((result.float() - right).abs().max() / right.abs().max())


def _seconds(layer: Linear, x: Tensor) -> float:
    """The fastest of a few runs."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - begin)
    return min(times)
