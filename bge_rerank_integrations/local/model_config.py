"""What a `config.json` says, each value checked, with transformers' defaults for what it omits.

A key that changes a score is read here or in `decoder_spec`, or has one value that the forwards
are written for (`FLAT`, and `decoder_spec.FIXED`). Every other key changes no score: transformers'
classes of the same name do not read it, or read it for training (dropout rates, initializer_range),
for generation and caching, for the number format, or to name things (id2label, _name_or_path).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_rerank_integrations.errors import CheckpointError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import QUANTIZERS, Checkpoint

# The architectures of the flat forward, each with its model_type.
MODEL_TYPES = {
    f"{name}{head}": kind
    for name, kind in (
        ("Bert", "bert"),
        ("Roberta", "roberta"),
        ("XLMRoberta", "xlm-roberta"),
        ("Camembert", "camembert"),
    )
    for head in ("Model", "ForSequenceClassification")
}
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# The values that the flat forward is written for; the first is transformers' default.
FLAT: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "hidden_act": ACTIVATIONS,
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "per_layer_config": (None, {}),
}
# Models that count positions from behind the padding id.
OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The sizes and switches of an encoder that the flat forward runs."""

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    types: int
    pad: int
    eps: float
    activation: str

    @property
    def offset_positions(self) -> bool:
        return self.model_type in OFFSET_POSITIONS


def why_not_flat(config: Mapping[str, Any]) -> str | None:
    """What in this `config.json` the flat forward does not know, or None if it can run it."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in MODEL_TYPES:
        return f"architecture {architecture}"
    for key, allowed in FLAT.items():
        if not is_one_of(config.get(key, allowed[0]), allowed):
            return f"{key} {config[key]!r}"
    return None


def read_encoder_config(config: Mapping[str, Any], model: str) -> EncoderConfig:
    """The checked config; raises `CheckpointError` for values that are missing or do not fit."""
    kind = MODEL_TYPES[config["architectures"][0]]
    if config.get("model_type") != kind:
        raise CheckpointError(
            f"config.json of {model} has model_type={config.get('model_type')!r}; "
            f"{config['architectures'][0]} is {kind!r}"
        )
    found = EncoderConfig(
        model_type=kind,
        hidden=read_size(config, "hidden_size", model),
        inner=read_size(config, "intermediate_size", model),
        layers=read_size(config, "num_hidden_layers", model, most=1000),
        heads=read_size(config, "num_attention_heads", model),
        vocabulary=read_size(config, "vocab_size", model),
        positions=read_size(config, "max_position_embeddings", model),
        types=read_size({"type_vocab_size": 2, **config}, "type_vocab_size", model),
        pad=padding_id(config, model),
        eps=read_number({"layer_norm_eps": 1e-12, **config}, "layer_norm_eps", model),
        activation=str(config.get("hidden_act", "gelu")),
    )
    if found.hidden % found.heads:
        raise CheckpointError(
            f"config.json of {model} divides hidden_size {found.hidden} among {found.heads} heads, "
            "which leaves a rest"
        )
    if found.pad >= found.vocabulary:
        raise CheckpointError(
            f"config.json of {model} has pad_token_id={found.pad} and a vocabulary of "
            f"{found.vocabulary}"
        )
    return found


def read_size(
    config: Mapping[str, Any], name: str, model: str, *, least: int = 1, most: int = MOST
) -> int:
    """A whole number of the config; raises `CheckpointError` for anything else."""
    number = config.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise CheckpointError(
            f"config.json of {model} has {name}={_shown(number)}, not a whole number from {least} "
            f"to {most}"
        )
    return number


def read_number(config: Mapping[str, Any], name: str, model: str) -> float:
    """A number above 0; raises `CheckpointError` for anything else."""
    number = config.get(name)
    # not NaN either, which is neither above nor below
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number <= MOST:
        raise CheckpointError(
            f"config.json of {model} has {name}={_shown(number)}, not a number above 0"
        )
    return float(number)


def read_flag(config: Mapping[str, Any], name: str, model: str, *, default: bool) -> bool:
    """A truth value; raises `CheckpointError` for anything else."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(
            f"config.json of {model} has {name}={_shown(value)}, not true or false"
        )
    return value


def is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Whether it is one of these, of the same type too: 0 is not False."""
    return any(type(value) is type(one) and value == one for one in allowed)


def padding_id(config: Mapping[str, Any], model: str = "the model") -> int:
    """The id of the padding token, by transformers' default where the config has none."""
    if config.get("pad_token_id") is None:
        return int(config.get("model_type") in OFFSET_POSITIONS)
    return read_size(config, "pad_token_id", model, least=0)


def position_limit(config: Mapping[str, Any], model: str) -> int:
    """The most tokens an input may have."""
    positions = read_size(config, "max_position_embeddings", model)
    if config.get("model_type") not in OFFSET_POSITIONS:
        return positions
    limit = positions - padding_id(config, model) - 1
    if limit < 1:
        raise CheckpointError(
            f"config.json of {model} has max_position_embeddings={positions} and "
            f"pad_token_id={padding_id(config, model)}, which leaves no position for a text"
        )
    return limit


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `UnsupportedModel` for weights that need a scale to be read."""
    said = [file for file in QUANTIZERS if (checkpoint.folder / file).is_file()]
    for key in ("quantization_config", "compression_config"):
        if quantization := checkpoint.config.get(key):
            method = (
                quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            )
            said.append(f"{key} {_shown(method)}")
    if said:
        raise UnsupportedModel(
            f"{checkpoint.model} holds quantized weights, as its {said[0]} says; use the model "
            "they were made from"
        )


def _shown(value: object) -> str:
    """The value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
