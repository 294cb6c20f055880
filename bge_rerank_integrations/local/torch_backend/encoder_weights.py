"""An encoder's weights: BERT's and XLM-R's names of their tensors, and the layers they become."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bge_rerank_integrations.base.models import label_count
from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.model_config import EncoderConfig
from bge_rerank_integrations.local.torch_backend.linear import LayerActivation, Linear
from bge_rerank_integrations.local.torch_backend.weights import Weights, check_tensors

# transformers' names to ours
ACTIVATIONS: dict[str, LayerActivation] = {
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
class EncoderLayer:
    """One encoder layer: attention and feed-forward, each followed by its LayerNorm."""

    query: Linear
    key_value: Linear
    attended: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


def read_norm(weights: Weights, name: str, config: EncoderConfig) -> Norm:
    """The LayerNorm of this name."""
    weight, bias = (weights.read(f"{name}.{part}") for part in ("weight", "bias"))
    return Norm(weight, bias, config.eps)


def read_layer(
    weights: Weights, residual: Weights, number: int, config: EncoderConfig
) -> EncoderLayer:
    """A layer whose norms are in the number format of `residual`."""
    layer = f"encoder.layer.{number}."
    activation = ACTIVATIONS[config.activation]
    return EncoderLayer(
        query=weights.linear(f"{layer}attention.self.query"),
        key_value=weights.linear(f"{layer}attention.self.key", f"{layer}attention.self.value"),
        attended=weights.linear(f"{layer}attention.output.dense"),
        attention_norm=read_norm(residual, f"{layer}attention.output.LayerNorm", config),
        up=weights.linear(f"{layer}intermediate.dense", activation=activation),
        down=weights.linear(f"{layer}output.dense"),
        output_norm=read_norm(residual, f"{layer}output.LayerNorm", config),
    )


def read_head(weights: Weights, config: EncoderConfig) -> tuple[Linear, Linear]:
    """The classifier in float32: tanh(dense(first token)), then one logit."""
    exact = weights.of_dtype(torch.float32, prefix="", path="plain")
    dense, out = (exact.linear(name) for name in _head_names(config, weights.prefix))
    return dense, out


def _head_names(config: EncoderConfig, prefix: str) -> tuple[str, str]:
    if config.model_type == "bert":
        return f"{prefix}pooler.dense", "classifier"
    return "classifier.dense", "classifier.out_proj"


def tensor_prefix(checkpoint: Checkpoint, config: EncoderConfig) -> str:
    """The prefix of every tensor of the encoder: "roberta.", "bert." or nothing.

    Raises what `check_tensors` does: every tensor has been checked after this.
    """
    body = "bert" if config.model_type == "bert" else "roberta"
    words = "embeddings.word_embeddings.weight"
    prefix = f"{body}." if f"{body}.{words}" in checkpoint.tensors else ""
    if prefix + words not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.folder} has no tensor {body}.{words} and no {words}; it may be saved "
            "from a wrapper that put a name before each: save the model itself"
        )
    expected = {prefix + name: shape for name, shape in body_shapes(config).items()}
    roots = {body, "embeddings", "encoder", "pooler"}
    if checkpoint.config["architectures"][0].endswith("ForSequenceClassification"):
        labels, square = label_count(checkpoint.config), (config.hidden, config.hidden)
        dense, out = _head_names(config, prefix)
        expected |= {f"{dense}.weight": square, f"{dense}.bias": (config.hidden,)}
        expected |= {f"{out}.weight": (labels, config.hidden), f"{out}.bias": (labels,)}
        roots.add("classifier")
    # heads of other tasks, stored with the encoder, give no score
    check_tensors(checkpoint, expected, is_unread=lambda name: name.partition(".")[0] not in roots)
    return prefix


def body_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder itself, with its shape."""
    hidden, inner = config.hidden, config.inner
    tables = {"word": config.vocabulary, "position": config.positions, "token_type": config.types}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{kind}_embeddings.weight": (rows, hidden) for kind, rows in tables.items()
    }
    matrices = {
        **dict.fromkeys(
            [f"attention.{part}" for part in ("self.query", "self.key", "self.value")],
            (hidden, hidden),
        ),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{number}" for number in range(config.layers)):
        for name, shape in matrices.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for norm in norms:
        shapes |= dict.fromkeys([f"{norm}.LayerNorm.{p}" for p in ("weight", "bias")], (hidden,))
    return shapes
