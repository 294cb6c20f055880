"""An encoder's weights: what BERT and XLM-R call their tensors, and what becomes of them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.model_config import EncoderConfig
from bge_rerank_integrations.local.torch_backend.linear import Activation, GemmPath, Linear
from bge_rerank_integrations.local.torch_backend.weights import Weights

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


def tensor_prefix(checkpoint: Checkpoint, config: EncoderConfig) -> str:
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
