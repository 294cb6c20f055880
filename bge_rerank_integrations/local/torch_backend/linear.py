"""Matrix products: oneDNN with prepacked weights where it is correct and faster, else torch's own.

On AMD processors torch's default product (MKL) is less than half as fast as the oneDNN in the same
wheel; everywhere oneDNN fuses the activation into the product. The operators are private and have
no public equivalent, so they are tried on real shapes before use and never required.
"""

import os
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GemmPath = Literal["onednn", "plain"]
LayerActivation = Literal["none", "gelu", "gelu_tanh", "relu", "silu"]

# torch's function for each activation, and oneDNN's name and algorithm, which fuses it
ACTIVATIONS: dict[LayerActivation, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "none": (lambda x: x, "none", ""),
    "gelu": (F.gelu, "gelu", "none"),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu", "tanh"),
    "relu": (F.relu, "relu", ""),
    "silu": (F.silu, "swish", ""),
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
        activate, name, algorithm = ACTIVATIONS[self.activation]
        if self.path == "plain":
            return activate(F.linear(x, self.weight, self.bias))
        fused = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        result: Tensor = fused(x, self.weight, self.bias, name, [], algorithm)
        return result


def linear(
    weight: Tensor, bias: Tensor | None, path: GemmPath, activation: LayerActivation = "none"
) -> Linear:
    """A layer over this weight, which is packed, and so copied, for oneDNN."""
    if path == "onednn":
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, HINT)  # noqa: SLF001
    elif weight.data_ptr() % ALIGNMENT:
        # A mapped tensor's address depends on its place in the file, and on some processors the
        # last bit of a product on the address: other files would give other scores.
        weight = weight.clone()
    return Linear(weight, bias, activation, path)


@cache
def choose_gemm_path(dtype: torch.dtype) -> tuple[GemmPath, str]:
    """The path for this CPU, and the reason: one numeric and one timing probe of a few ms."""
    # each thread keeps the products of so many shapes; 1024, the default, take hundreds of MB, and
    # a layer has less than 16
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "16")
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
            _share_of_largest(replace(packed, activation=activation)(x), activate(exact))
            for activation, (activate, *_) in ACTIVATIONS.items()
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
    return min(timeit.repeat(lambda: layer(x), number=1, repeat=6))
