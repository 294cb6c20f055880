"""Tensors of a checkpoint on the plan's device, read one by one from safetensors.

Before the first one is read, the files' tensors are compared with those that the config asks for.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Checkpoint, StoredTensor
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.torch_backend.linear import (
    GemmPath,
    LayerActivation,
    Linear,
    linear,
)
from bge_rerank_integrations.local.torch_backend.runtime import weight_format

# about one layer of an encoder; each mapping reads the file's table of tensors again
PER_MAPPING = 16

FLOATS = ("F64", "F32", "F16", "BF16")
# Buffers that are computed anew, and a pooler that the forward does not use.
DERIVED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|cos_cached|sin_cached|pooler\.(dense\.)?\w+)$"
)
# Parts of a weight, whatever module they are in: low-rank updates and quantizers' numbers.
PARTS = re.compile(r"lora_|adapter|_scale(_inv)?$|\.scales?$|zero_?points?$|qweight|qzeros|absmax")


def check_tensors(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[int, ...]],
    *,
    is_unread: Callable[[str], bool],
) -> None:
    """Compare the files with the names and shapes that the config asks for.

    Raises `CheckpointError`, naming the tensor, for one that is missing, of another shape, or left
    over and not `is_unread`; `UnsupportedModel` for one in a quantized format.
    """
    for name, shape in expected.items():
        stored = checkpoint.tensors.get(name)
        if stored is None:
            raise CheckpointError(lacks(checkpoint, name))
        if stored.dtype not in FLOATS:
            raise UnsupportedModel(quantized(checkpoint, name))
        if stored.shape != shape:
            raise CheckpointError(misshapen(checkpoint, name, shape))
    refuse_left_over(checkpoint, checkpoint.tensors.keys() - expected.keys(), is_unread=is_unread)


def refuse_left_over(
    checkpoint: Checkpoint, names: Iterable[str], *, is_unread: Callable[[str], bool]
) -> None:
    """Raise `CheckpointError` for unread tensors that could change a score."""
    for name in sorted(names):
        if PARTS.search(name) or not (DERIVED.search(name) or is_unread(name)):
            raise CheckpointError(
                f"{checkpoint.model} holds {name!r}, which the model that "
                "config.json describes does not have: a layer more, a LoRA adapter to be merged "
                "first, a quantizer's scale, or another position embedding; scores without it "
                "could be wrong"
            )


def misshapen(checkpoint: Checkpoint, name: str, shape: Iterable[int]) -> str:
    """The message for a tensor of another shape than the config asks for."""
    file, _, found, _ = checkpoint.tensors[name]
    what = " x ".join(map(str, found)) or "a single number"
    empty = " (empty: DeepSpeed ZeRO-3 saves such; gather the weights first)" if 0 in found else ""
    return (
        f"{name!r} in {file} is {what}{empty}, and config.json says "
        f"{' x '.join(map(str, shape))}: they belong to different models"
    )


def lacks(checkpoint: Checkpoint, name: str) -> str:
    """The message for a missing tensor."""
    code = "auto_map" in checkpoint.config
    why = "its auto_map names code of its own, which may read others and is never run; " * code
    return (
        f"{checkpoint.model} lacks the weight {name!r}; {why}a model with untrained random weights "
        "in its place would give random scores"
    )


def quantized(checkpoint: Checkpoint, name: str) -> str:
    """The message for a tensor that means nothing without a scale."""
    return (
        f"{checkpoint.model} holds {name!r} as {checkpoint.tensors[name].dtype}: quantized weights "
        "are not supported; use the model they were made from"
    )


class Weights:
    """Reads tensors whose names begin with `prefix`, in the plan's number format.

    A file is mapped again after every `PER_MAPPING` tensors, and a mapping is freed with its last
    tensor: a model that packs its weights would otherwise hold them twice.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: DevicePlan,
        prefix: str = "",
        *,
        dtype: torch.dtype | None = None,
        path: GemmPath = "plain",
    ) -> None:
        self.prefix = prefix
        self._checkpoint = checkpoint
        self._plan = plan
        self._dtype = dtype or weight_format(plan)
        self._path = path
        self._mapped: tuple[Path, Any, int] | None = None

    def of_dtype(
        self, dtype: torch.dtype, *, prefix: str | None = None, path: GemmPath | None = None
    ) -> "Weights":
        """The same checkpoint in another number format, under another prefix or path if given."""
        prefix = self.prefix if prefix is None else prefix
        return Weights(self._checkpoint, self._plan, prefix, dtype=dtype, path=path or self._path)

    def read(self, name: str) -> Tensor:
        """The whole tensor; raises `CheckpointError` if the checkpoint lacks it."""
        return self._place(self._stored(name))

    def read_table(self, name: str) -> Tensor:
        """An embedding table; on a CPU as stored, because only the batch's rows are read."""
        table = self._stored(name)
        return table if self._plan.device == "cpu" else self._place(table)

    def read_row(self, name: str, row: int) -> Tensor:
        """One row of a matrix, without reading the rest: [1, width]."""
        opened, tensor = self._open(name)
        return self._place(opened.get_slice(tensor.name)[row : row + 1])

    def linear(
        self, *names: str, biased: bool = True, activation: LayerActivation = "none"
    ) -> Linear:
        """One linear layer, or several over the same input, stacked."""
        weight = _joined([self.read(f"{name}.weight") for name in names])
        bias = _joined([self.read(f"{name}.bias") for name in names]) if biased else None
        return linear(weight, bias, self._path, activation)

    def _stored(self, name: str) -> Tensor:
        opened, tensor = self._open(name)
        stored: Tensor = opened.get_tensor(tensor.name)
        return stored

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._plan.device, dtype=self._dtype)

    def _open(self, name: str) -> tuple[Any, StoredTensor]:
        """The file that holds the tensor, mapped, and the tensor's place in it."""
        tensor = self._checkpoint.tensors.get(self.prefix + name)
        if tensor is None:
            raise CheckpointError(lacks(self._checkpoint, self.prefix + name))
        if self._mapped is None or self._mapped[0] != tensor.file or self._mapped[2] == PER_MAPPING:
            self._mapped = (tensor.file, safe_open(str(tensor.file), framework="pt"), 0)
        file, opened, taken = self._mapped
        self._mapped = (file, opened, taken + 1)
        return opened, tensor


def _joined(tensors: list[Tensor]) -> Tensor:
    # a single one stays mapped: a copy would take memory
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
