"""What an encoder's `config.json` says, checked, with transformers' defaults for what it omits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel

ARCHITECTURES = {
    f"{name}{head}"
    for name in ("Bert", "Roberta", "XLMRoberta", "Camembert")
    for head in ("Model", "ForSequenceClassification")
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# Models that count positions from behind the padding id.
OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes and switches of an encoder that the flat forward runs."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    pad: int
    eps: float
    activation: str

    @property
    def offset_positions(self) -> bool:
        return self.model_type in OFFSET_POSITIONS


def why_not_flat(config: Mapping[str, Any]) -> str | None:
    """What in this `config.json` the flat forward does not know, or None if it can run it."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        return f"architecture {architecture}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type {config['position_embedding_type']!r}"
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        return f"hidden_act {config['hidden_act']!r}"
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "a decoder"
    return None


def read_encoder_config(config: Mapping[str, Any], model: str) -> EncoderConfig:
    """The checked config; raises `CheckpointError` for numbers that are missing or do not fit."""
    sizes = {
        name: read_size(config, name, model)
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    }
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CheckpointError(
            f"config.json of {model} divides hidden_size {sizes['hidden_size']} among "
            f"{sizes['num_attention_heads']} heads, which leaves a rest"
        )
    return EncoderConfig(
        model_type=str(config["model_type"]),
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        vocabulary=sizes["vocab_size"],
        positions=sizes["max_position_embeddings"],
        pad=padding_id(config),
        eps=float(config.get("layer_norm_eps", 1e-12)),
        activation=str(config.get("hidden_act", "gelu")),
    )


def read_size(config: Mapping[str, Any], name: str, model: str) -> int:
    """A positive whole number of the config; raises `CheckpointError` for anything else."""
    number = config.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"config.json of {model} has {name}={number!r}, not a whole number")
    return number


def padding_id(config: Mapping[str, Any]) -> int:
    """The id of the padding token, by transformers' default where the config has none."""
    number = config.get("pad_token_id")
    return int(config.get("model_type") in OFFSET_POSITIONS) if number is None else int(number)


def position_limit(config: Mapping[str, Any], model: str) -> int:
    """The most tokens an input may have."""
    positions = read_size(config, "max_position_embeddings", model)
    if config.get("model_type") in OFFSET_POSITIONS:
        return positions - padding_id(config) - 1
    return positions


def refuse_quantized(config: Mapping[str, Any], model: str) -> None:
    """Raise `UnsupportedModel` for weights that need a scale to be read."""
    if quantization := config.get("quantization_config"):
        method = (
            quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        )
        raise UnsupportedModel(
            f"{model} holds quantized weights ({method}); use the model they were made from"
        )
