"""The checked values of a `config.json`, with transformers' defaults for missing keys.

A key that changes a score is read here or in `decoder_spec`, or has one value that the forwards
are written for (`FLAT`, and `decoder_spec.FIXED`). Every other key changes no score: transformers'
classes of the same name do not read it, or read it for training (dropout rates, initializer_range),
for generation and caching, for the number format, or to name things (id2label, _name_or_path).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_rerank_integrations.errors import UnsupportedModel
from bge_rerank_integrations.local.checkpoint import QUANTIZERS, Checkpoint, Keys, is_one_of

# The architectures of the flat forward, each with its model_type.
KINDS = {
    "Bert": "bert", "Camembert": "camembert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta",
}  # fmt: skip
MODEL_TYPES = {
    name + head: kind
    for name, kind in KINDS.items()
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
# Models whose positions start after the padding id.
OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


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
    """The part of this `config.json` that the flat forward does not support, or None."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in MODEL_TYPES:
        return f"architecture {architecture}"
    for key, allowed in FLAT.items():
        if not is_one_of(config.get(key, allowed[0]), allowed):
            return f"{key} {config[key]!r}"
    return None


def read_encoder_config(config: Keys) -> EncoderConfig:
    """The checked config; raises `CheckpointError` for values that are missing or do not fit."""
    architecture = config["architectures"][0]
    kind = MODEL_TYPES[architecture]
    if config.get("model_type") != kind:
        config.refuse("model_type", f"for {architecture} it must be {kind!r}")
    found = EncoderConfig(
        model_type=kind,
        hidden=config.whole("hidden_size"),
        inner=config.whole("intermediate_size"),
        layers=config.whole("num_hidden_layers"),
        heads=config.whole("num_attention_heads"),
        vocabulary=config.whole("vocab_size"),
        positions=config.whole("max_position_embeddings"),
        types=config.whole("type_vocab_size", default=2),
        pad=padding_id(config),
        eps=config.number("layer_norm_eps", default=1e-12),
        activation=str(config.get("hidden_act", "gelu")),
    )
    if found.hidden % found.heads:
        config.refuse("hidden_size", f"it must be a multiple of num_attention_heads={found.heads}")
    if found.pad >= found.vocabulary:
        config.refuse("pad_token_id", f"it must be below vocab_size={found.vocabulary}")
    return found


def padding_id(config: Keys) -> int:
    """The id of the padding token, by transformers' default where the config has none."""
    if config.get("pad_token_id") is None:
        return int(config.get("model_type") in OFFSET_POSITIONS)
    return config.whole("pad_token_id", minimum=0)


def position_limit(config: Keys) -> int:
    """The maximum number of tokens in an input."""
    limit = config.whole("max_position_embeddings")
    if config.get("model_type") in OFFSET_POSITIONS:
        limit -= (pad := padding_id(config)) + 1
        if limit < 1:
            why = f"with pad_token_id={pad} it leaves no position for a text"
            config.refuse("max_position_embeddings", why)
    return limit


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `UnsupportedModel` for weights that need a scale to be read."""
    why = "quantized weights are not supported; use the model that they were made from"
    for file in QUANTIZERS:
        if (checkpoint.folder / file).is_file():
            raise UnsupportedModel(f"{checkpoint.model} has {file}; {why}")
    for key in ("quantization_config", "compression_config"):
        if found := checkpoint.config.get(key):
            method = found.get("quant_method") if isinstance(found, dict) else found
            checkpoint.config.refuse(key, why, value=method, error=UnsupportedModel)
