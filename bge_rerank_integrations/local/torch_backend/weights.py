"""Tensors of a checkpoint on the plan's device, read one by one straight from safetensors."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.torch_backend.linear import Activation, GemmPath, Linear, linear
from bge_rerank_integrations.local.torch_backend.runtime import weight_format

# about one layer of an encoder; each mapping reads the file's table of tensors again
PER_MAPPING = 16


class Weights:
    """Reads tensors whose names begin with `prefix`, in the plan's number format.

    A file is mapped anew after every `PER_MAPPING` tensors, and a mapping goes with its last one: a
    model that packs its weights would otherwise hold them twice.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: DevicePlan,
        prefix: str = "",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.prefix = prefix
        self._checkpoint = checkpoint
        self._plan = plan
        self._dtype = dtype or weight_format(plan)
        self._mapped: tuple[Path, Any, int] | None = None

    def of_dtype(self, dtype: torch.dtype, *, prefix: str | None = None) -> "Weights":
        """The same checkpoint in another number format, and under another prefix if given."""
        prefix = self.prefix if prefix is None else prefix
        return Weights(self._checkpoint, self._plan, prefix, dtype)

    def has(self, name: str) -> bool:
        return self.prefix + name in self._checkpoint.files

    def read(self, name: str) -> Tensor:
        """The whole tensor; raises `CheckpointError` if the checkpoint lacks it."""
        return self._place(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        part = self._open(name).get_slice(self.prefix + name)
        return tuple(part.get_shape())

    def read_table(self, name: str) -> Tensor:
        """An embedding table: as stored on a CPU, where only the batch's rows are ever read."""
        table = self._stored(name)
        return table if self._plan.device == "cpu" else self._place(table)

    def read_row(self, name: str, row: int) -> Tensor:
        """One row of a matrix, without reading the rest: [1, width]."""
        part = self._open(name).get_slice(self.prefix + name)
        return self._place(part[row : row + 1])

    def linear(
        self, *names: str, path: GemmPath, biased: bool, activation: Activation = "none"
    ) -> Linear:
        """One linear layer, or several over the same input laid below one another."""
        weight = _joined([self.read(f"{name}.weight") for name in names])
        bias = _joined([self.read(f"{name}.bias") for name in names]) if biased else None
        return linear(weight, bias, path, activation)

    def _stored(self, name: str) -> Tensor:
        tensor: Tensor = self._open(name).get_tensor(self.prefix + name)
        if not tensor.is_floating_point():
            raise UnsupportedModel(
                f"{self._checkpoint.model} holds {self.prefix + name!r} as {tensor.dtype}: "
                "quantized weights are not supported; use the model they were made from"
            )
        return tensor

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._plan.device, dtype=self._dtype)

    def _open(self, name: str) -> Any:
        """The file that holds the tensor, mapped."""
        file = self._file(name)
        if self._mapped is None or self._mapped[0] != file or self._mapped[2] == PER_MAPPING:
            self._mapped = (file, safe_open(str(file), framework="pt"), 0)
        _, opened, taken = self._mapped
        self._mapped = (file, opened, taken + 1)
        return opened

    def _file(self, name: str) -> Path:
        file = self._checkpoint.files.get(self.prefix + name)
        if file is None:
            raise CheckpointError(
                f"{self._checkpoint.model} lacks the weight {self.prefix + name!r}; a model with "
                "untrained random weights in its place would give random scores"
            )
        return file


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
