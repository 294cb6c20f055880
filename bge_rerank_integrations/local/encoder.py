"""A padding-free forward for BERT and XLM-R encoders: torch and safetensors, no transformers.

All sequences of a batch lie end to end in one matrix, so no work goes into padding. Attention runs
once per run of equal lengths on a CPU, and over a padded copy with a mask on accelerators. Where
only the first token is read, the last layer is computed for that token alone, which is exact.
Residuals, LayerNorm and head follow transformers' `BertModel` and `XLMRobertaModel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.attention import PackedAttention, Segment
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.encoder_config import EncoderConfig, read_encoder_config
from bge_rerank_integrations.local.linear import Activation, GemmPath, Linear
from bge_rerank_integrations.local.tokens import TokenSequence
from bge_rerank_integrations.local.torch_runtime import (
    autocast,
    exact_plan,
    gemm_path,
    is_out_of_memory,
    release_memory,
    survive_forks,
    weight_format,
)
from bge_rerank_integrations.local.weights import Weights
from bge_rerank_integrations.types import FloatArray

Output = Literal["logit", "cls", "mean"]

# transformers' names to ours
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """One encoder layer: attention and feed-forward, each followed by its LayerNorm."""

    query: Linear
    key_value: Linear
    attended: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class FlatEncoder:
    """The encoder and its head on one device; see `engine.Forward`."""

    padded = False
    max_sequences: int | None = None

    def __init__(self, checkpoint: Checkpoint, plan: DevicePlan, output: Output) -> None:
        config = read_encoder_config(checkpoint.config, checkpoint.model)
        path, reason = gemm_path(plan)
        self.plan = replace(plan, reasons=(*plan.reasons, reason))
        self.concurrency = 1 if plan.device != "cpu" else 4
        self._checkpoint = checkpoint
        self._output = output
        self._config = config
        self._format = weight_format(plan)
        # on a CPU only products and attention are in half precision: the rest is not what costs
        residual = torch.float32 if plan.device == "cpu" else self._format
        survive_forks()
        weights = Weights(checkpoint, plan, _prefix(checkpoint, config))
        names = TensorNames(weights, weights.of_dtype(residual), config, path)
        with torch.inference_mode():
            self._words = names.table("word_embeddings", config.vocabulary, config.hidden)
            self._positions = names.table("position_embeddings", config.positions, config.hidden)
            self._types = weights.read("embeddings.token_type_embeddings.weight")
            self._embedding_norm = names.norm("embeddings.LayerNorm")
            self._layers = [names.layer(f"encoder.layer.{i}.") for i in range(config.layers)]
            self._head = names.head() if output == "logit" else ()

    def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
        if exact and self.plan.precision != "fp32":
            return self._exact.run(batch)
        with torch.inference_mode():
            with autocast(self.plan):
                pooled = self._encode(batch)
            with autocast(exact_plan(self.plan)):
                rows = self._apply_head(pooled.float())
        result: FloatArray = rows.cpu().numpy()
        return result

    @cached_property
    def _exact(self) -> "FlatEncoder":
        self._checkpoint.check_unchanged()
        return FlatEncoder(self._checkpoint, exact_plan(self.plan), self._output)

    def is_out_of_memory(self, error: Exception) -> bool:
        return is_out_of_memory(error)

    def release_memory(self) -> None:
        release_memory(self.plan.device)

    def _encode(self, batch: Sequence[TokenSequence]) -> Tensor:
        """The pooled vector of each sequence: [sequences, hidden]."""
        lengths = [len(sequence.ids) for sequence in batch]
        starts = np.cumsum([0, *lengths[:-1]])
        first = self._on_device(starts)
        attend = PackedAttention(
            [Segment(length) for length in lengths],
            heads=self._config.heads,
            kv_heads=self._config.heads,
            causal=False,
            scale=None,
            path=self.plan.attention,
            device=self.plan.device,
        )
        x = self._embed(batch, lengths)
        cls_only = self._output != "mean"
        for number, layer in enumerate(self._layers):
            last = cls_only and number == len(self._layers) - 1
            # keys and values of every token, but queries of the first tokens alone
            asking = x[first] if last else x
            given = x.to(self._format)
            key, value = layer.key_value(given).chunk(2, dim=1)
            mixed = attend(layer.query(given[first] if last else given), key, value)
            x = layer.attention_norm(layer.attended(mixed) + asking)
            x = layer.output_norm(layer.down(layer.up(x.to(self._format))) + x)
        if cls_only:
            return x if self._layers else x[first]
        owner = torch.repeat_interleave(self._on_device(np.asarray(lengths)))
        x = x.float()
        total = x.new_zeros(len(batch), x.shape[1]).index_add_(0, owner, x)
        return total / self._on_device(np.asarray(lengths))[:, None]

    def _embed(self, batch: Sequence[TokenSequence], lengths: Sequence[int]) -> Tensor:
        ids = np.concatenate([sequence.ids for sequence in batch]).astype(np.int64)
        x = F.embedding(self._on_device(ids), self._words).float()
        positions = np.concatenate([self._position_ids(sequence.ids) for sequence in batch])
        x = x + F.embedding(self._on_device(positions), self._positions).float()
        if self._config.model_type == "bert" and len(self._types) > 1:
            types = np.concatenate(
                [
                    np.arange(length) >= sequence.first_segment
                    for sequence, length in zip(batch, lengths, strict=True)
                ]
            )
            x = x + F.embedding(self._on_device(types.astype(np.int64)), self._types).float()
        else:
            x = x + self._types[0].float()
        return self._embedding_norm(x.to(self._embedding_norm.weight.dtype))

    def _position_ids(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not self._config.offset_positions:
            return np.arange(len(ids))
        real = ids != self._config.pad
        positions: np.ndarray[Any, Any] = np.cumsum(real) * real + self._config.pad
        return positions

    def _apply_head(self, pooled: Tensor) -> Tensor:
        if not self._head:
            return pooled
        dense, out = self._head
        return out(torch.tanh(dense(pooled)))

    def _on_device(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.plan.device)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What BERT and XLM-R call their tensors."""

    weights: Weights
    norms: Weights
    config: EncoderConfig
    path: GemmPath

    def norm(self, name: str) -> Norm:
        weight, bias = (self.norms.read(f"{name}.{part}") for part in ("weight", "bias"))
        return Norm(weight, bias, self.config.eps)

    def table(self, name: str, rows: int, width: int) -> Tensor:
        """An embedding table, which must be as large as the config says."""
        table = self.weights.read_table(f"embeddings.{name}.weight")
        if table.shape != (rows, width):
            raise CheckpointError(
                f"{name} is {table.shape[0]} x {table.shape[1]}, and config.json says "
                f"{rows} x {width}: they belong to different models"
            )
        return table

    def layer(self, prefix: str) -> Layer:
        def linear(*names: str, activation: Activation = "none") -> Linear:
            full = (prefix + name for name in names)
            return self.weights.linear(*full, path=self.path, biased=True, activation=activation)

        return Layer(
            query=linear("attention.self.query"),
            key_value=linear("attention.self.key", "attention.self.value"),
            attended=linear("attention.output.dense"),
            attention_norm=self.norm(f"{prefix}attention.output.LayerNorm"),
            up=linear("intermediate.dense", activation=ACTIVATIONS[self.config.activation]),
            down=linear("output.dense"),
            output_norm=self.norm(f"{prefix}output.LayerNorm"),
        )

    def head(self) -> tuple[Linear, Linear]:
        """The classifier in float32: tanh(dense(first token)), then one logit."""
        names = ("classifier.dense", "classifier.out_proj")
        if self.config.model_type == "bert":
            names = (f"{self.weights.prefix}pooler.dense", "classifier")
        exact = self.weights.of_dtype(torch.float32, prefix="")
        dense, out = (exact.linear(name, path="plain", biased=True) for name in names)
        return dense, out


def _prefix(checkpoint: Checkpoint, config: EncoderConfig) -> str:
    """What stands before every tensor of the encoder: "roberta.", "bert." or nothing.

    Raises `CheckpointError` for a checkpoint of more layers than its config has.
    """
    words = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(words) for name in checkpoint.files if name.endswith(words)]
    if not prefixes:
        raise CheckpointError(f"{checkpoint.folder} has no tensor ...{words}")
    beyond = f"{prefixes[0]}encoder.layer.{config.layers}."
    if any(name.startswith(beyond) for name in checkpoint.files):
        raise CheckpointError(
            f"{checkpoint.folder} has more layers than the {config.layers} of its config.json"
        )
    return prefixes[0]
