"""A padding-free forward for BERT and XLM-R encoders: torch and safetensors, no transformers.

All sequences of a batch lie end to end in one matrix, so no work goes into padding. Attention runs
once per run of equal lengths on a CPU, and over a padded copy with a mask on accelerators. Where
only the first token is read, the last layer is computed for that token alone, which is exact.
Residuals, LayerNorm and head follow transformers' `BertModel` and `XLMRobertaModel`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.tokens import TokenSequence
from bge_rerank_integrations.local.torch_memory import is_out_of_memory, release_memory
from bge_rerank_integrations.types import FloatArray

Output = Literal["logit", "cls", "mean"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
# Models whose positions count from the padding id onwards, and only over tokens that are not it.
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
MODEL_TYPES = ("bert", *OFFSET_POSITIONS)


def why_not_flat(config: Mapping[str, Any]) -> str | None:
    """What in this `config.json` the flat forward does not know, or None if it can run it."""
    if config.get("model_type") not in MODEL_TYPES:
        return f"model_type {config.get('model_type')!r}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type {config['position_embedding_type']!r}"
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        return f"hidden_act {config['hidden_act']!r}"
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "a decoder"
    return None


class Dense(NamedTuple):
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    query: Dense
    key_value: Dense
    attended: Dense
    attention_norm: Norm
    up: Dense
    down: Dense
    output_norm: Norm


class Run(NamedTuple):
    """Neighbouring sequences of equal length: their rows, and their number and length."""

    rows: slice
    sequences: slice
    count: int
    length: int


class FlatEncoder:
    """The encoder and its head on one device; see `engine.Forward`."""

    padded = False
    max_sequences: int | None = None

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: Output) -> None:
        config = checkpoint.config
        self.plan = plan
        self.concurrency = 1 if plan.device != "cpu" else 4
        self._output = output
        self._heads = int(config["num_attention_heads"])
        self._activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
        self._dtype = getattr(torch, plan.dtype)
        self._pad = int(config.get("pad_token_id") or 0)
        self._offset_positions = config["model_type"] in OFFSET_POSITIONS
        self._segments = int(config.get("type_vocab_size", 1)) > 1
        weights = Weights(checkpoint, plan, float(config.get("layer_norm_eps", 1e-12)))
        with torch.inference_mode():
            self._words = weights.read("embeddings.word_embeddings.weight")
            self._positions = weights.read("embeddings.position_embeddings.weight")
            self._types = weights.read("embeddings.token_type_embeddings.weight")
            self._embedding_norm = weights.norm("embeddings.LayerNorm")
            self._layers = [
                weights.layer(f"encoder.layer.{number}.")
                for number in range(int(config["num_hidden_layers"]))
            ]
            self._head = weights.head() if output == "logit" else ()

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        kind = self.plan.device.partition(":")[0]
        half = self.plan.dtype != "float32"
        autocast = self.plan.autocast and half and not exact
        dtype = torch.float32 if exact or self.plan.autocast else self._dtype
        context = torch.autocast(kind, self._dtype) if autocast else nullcontext()
        with torch.inference_mode(), context:
            pooled = self._encode(batch, dtype)
            with torch.autocast(kind, enabled=False):
                rows = self._apply_head(pooled.float())
        return rows.cpu().numpy()

    def is_out_of_memory(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def release_memory(self) -> None:
        release_memory(self.plan.device)

    def _encode(self, batch: Sequence[TokenSequence], dtype: torch.dtype) -> Tensor:
        """The pooled vector of each sequence: [sequences, hidden]."""
        lengths = [len(sequence.ids) for sequence in batch]
        starts = np.cumsum([0, *lengths[:-1]])
        first = self._on_device(starts)
        attend = self._attention(lengths)
        x = self._embed(batch, lengths).to(dtype)
        cls_only = self._output != "mean"
        for number, layer in enumerate(self._layers):
            last = cls_only and number == len(self._layers) - 1
            # keys and values of every token, but queries of the first tokens alone
            asking = x[first] if last else x
            mixed = attend(layer.query(asking), layer.key_value(x))
            x = layer.attention_norm(layer.attended(mixed) + asking)
            x = layer.output_norm(layer.down(self._activation(layer.up(x))) + x)
        if cls_only:
            return x if self._layers else x[first]
        owner = torch.repeat_interleave(self._on_device(np.asarray(lengths)))
        total = torch.zeros(len(batch), x.shape[1], device=x.device).index_add_(0, owner, x.float())
        return total / self._on_device(np.asarray(lengths))[:, None]

    def _embed(self, batch: Sequence[TokenSequence], lengths: Sequence[int]) -> Tensor:
        ids = np.concatenate([sequence.ids for sequence in batch]).astype(np.int64)
        x = F.embedding(self._on_device(ids), self._words).float()
        positions = np.concatenate([self._position_ids(sequence.ids) for sequence in batch])
        x = x + F.embedding(self._on_device(positions), self._positions).float()
        if self._segments:
            types = np.concatenate(
                [
                    np.arange(length) >= sequence.first_segment
                    for sequence, length in zip(batch, lengths, strict=True)
                ]
            )
            x = x + F.embedding(self._on_device(types.astype(np.int64)), self._types).float()
        else:
            x = x + self._types[0].float()
        norm = self._embedding_norm
        return F.layer_norm(x, x.shape[1:], norm.weight.float(), norm.bias.float(), norm.eps)

    def _position_ids(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not self._offset_positions:
            return np.arange(len(ids))
        real = ids != self._pad
        return np.cumsum(real) * real + self._pad

    def _attention(self, lengths: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        if self.plan.attention == "runs":
            runs = equal_runs(lengths)
            return lambda query, key_value: self._attend_runs(query, key_value, runs)
        return self._padded_attention(lengths)

    def _attend_runs(self, query: Tensor, key_value: Tensor, runs: Sequence[Run]) -> Tensor:
        out = torch.empty_like(query)
        first_only = len(query) != len(key_value)
        size = query.shape[1] // self._heads
        for run in runs:
            rows = run.sequences if first_only else run.rows
            q = query[rows].view(run.count, -1, self._heads, size).transpose(1, 2)
            k, v = key_value[run.rows].view(run.count, run.length, 2, self._heads, size).unbind(2)
            mixed = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2))
            out[rows].view(run.count, -1, self._heads, size).copy_(mixed.transpose(1, 2))
        return out

    def _padded_attention(self, lengths: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        count, longest = len(lengths), max(lengths)
        there = self._on_device(np.arange(longest) < np.asarray(lengths)[:, None])
        mask = None if there.all() else there[:, None, None, :]

        def attend(query: Tensor, key_value: Tensor) -> Tensor:
            size = query.shape[1] // self._heads
            wide = key_value.new_zeros(count, longest, key_value.shape[1])
            wide[there] = key_value
            k, v = wide.view(count, longest, 2, self._heads, size).unbind(2)
            first_only = len(query) != len(key_value)
            q = query.view(count, 1, -1) if first_only else query.new_zeros(count, longest, query.shape[1])
            if not first_only:
                q[there] = query
            q = q.view(count, -1, self._heads, size)
            mixed = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
            )
            flat = mixed.transpose(1, 2).reshape(count, -1, query.shape[1])
            return flat[:, 0] if first_only else flat[there]

        return attend

    def _apply_head(self, pooled: Tensor) -> Tensor:
        if not self._head:
            return pooled
        dense, out = self._head
        return out(torch.tanh(dense(pooled)))

    def _on_device(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.plan.device)


def equal_runs(lengths: Sequence[int]) -> list[Run]:
    """Neighbouring equal lengths, grouped; together the runs cover every row once."""
    runs, row, sequence = [], 0, 0
    for length, group in groupby(lengths):
        count = len(list(group))
        runs.append(
            Run(slice(row, row + count * length), slice(sequence, sequence + count), count, length)
        )
        row, sequence = row + count * length, sequence + count
    return runs


class Weights:
    """Tensors of a checkpoint by the names that BERT and XLM-R give them, on the plan's device."""

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, eps: float) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._eps = eps
        self._dtype = torch.float32 if plan.autocast else getattr(torch, plan.dtype)
        self._open: dict[str, Any] = {}
        words = "embeddings.word_embeddings.weight"
        prefixes = [name.removesuffix(words) for name in checkpoint.files if name.endswith(words)]
        if not prefixes:
            raise CheckpointError(f"{checkpoint.folder} has no tensor ...{words}")
        self._prefix = prefixes[0]

    def read(self, name: str, *, prefix: str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        full = (self._prefix if prefix is None else prefix) + name
        file = self._checkpoint.files.get(full)
        if file is None:
            raise CheckpointError(
                f"{self._checkpoint.model} lacks the weight {full!r}; a model with untrained "
                "random weights in its place would give random scores"
            )
        if str(file) not in self._open:
            self._open[str(file)] = safe_open(str(file), framework="pt")
        tensor: Tensor = self._open[str(file)].get_tensor(full)
        return tensor.to(device=self._plan.device, dtype=dtype or self._dtype)

    def dense(self, *names: str) -> Dense:
        """One linear layer, or several over the same input laid below one another."""
        return Dense(
            torch.cat([self.read(f"{name}.weight") for name in names]),
            torch.cat([self.read(f"{name}.bias") for name in names]),
        )

    def norm(self, name: str) -> Norm:
        return Norm(self.read(f"{name}.weight"), self.read(f"{name}.bias"), self._eps)

    def layer(self, prefix: str) -> Layer:
        attention = f"{prefix}attention.self."
        return Layer(
            query=self.dense(f"{attention}query"),
            key_value=self.dense(f"{attention}key", f"{attention}value"),
            attended=self.dense(f"{prefix}attention.output.dense"),
            attention_norm=self.norm(f"{prefix}attention.output.LayerNorm"),
            up=self.dense(f"{prefix}intermediate.dense"),
            down=self.dense(f"{prefix}output.dense"),
            output_norm=self.norm(f"{prefix}output.LayerNorm"),
        )

    def head(self) -> tuple[Dense, Dense]:
        """The classifier in float32: tanh(dense(first token)), then one logit."""
        if self._checkpoint.config["model_type"] == "bert":
            names = (f"{self._prefix}pooler.dense", "classifier")
        else:
            names = ("classifier.dense", "classifier.out_proj")
        dense, out = (
            Dense(
                self.read(f"{name}.weight", prefix="", dtype=torch.float32),
                self.read(f"{name}.bias", prefix="", dtype=torch.float32),
            )
            for name in names
        )
        return dense, out
