"""The three LLM rerankers as values: each architecture's config becomes one spec.

Sources: the models' `config.json` and cards, and FlagEmbedding 1.4.2 as it behaves on transformers
4.44 to 4.47, the only releases on which all three of its classes run.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Keys
from bge_rerank_integrations.options import LayerOptions

# The values that the forward is written for; None means that the key may be missing or null. Any
# other value is refused. Keys that are neither here nor read below change no score of the
# reference: it reads MiniCPM's dim_model_base only for heads other than 'simple' ones and its
# pretraining_tp for the order of a sum, and ignores Gemma 2's attn_logit_softcapping.
ANY_FAMILY: dict[str, tuple[object, ...]] = {
    "attention_bias": (None, False),
    "pruned_heads": (None, {}),
    "use_bidirectional_attention": (None, False),
    "per_layer_config": (None, {}),
    "partial_rotary_factor": (None, 1.0, 1),
}
FIXED: dict[Family, dict[str, tuple[object, ...]]] = {
    Family.CAUSAL: {
        # "gelu" means its tanh form, which transformers 4.39 to 4.47 and 5.23 use
        "hidden_act": (None, "gelu", "gelu_pytorch_tanh"),
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "model_type": ("gemma",),
        "sliding_window": (None,),
        "layer_types": (None,),
    },
    Family.LAYERWISE: {
        "hidden_act": ("silu",),
        "head_type": ("simple",),
        "head_multi": (True,),
        "sliding_window": (None,),
        "layer_types": (None,),
    },
    Family.LIGHTWEIGHT: {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "layer_wise": (True,),
    },
}


@dataclass(frozen=True, slots=True)
class LogitHead:
    """The vector that turns a layer's hidden state into a logit: a tensor, or one row of it."""

    layer: int
    tensor: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything the decoder's forward needs to know about an architecture."""

    heads: tuple[LogitHead, ...]
    hidden: int
    inner: int
    vocabulary: int
    stored_layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    eps: float
    rope_theta: float
    activation: Literal["gelu_tanh", "silu"]
    embedding_scale: float
    attention_scale: float
    residual_scale: float = 1.0
    norm_offset: float = 0.0
    """Added to a norm's stored weight: Gemma stores weights minus one."""
    sandwich_norms: bool = False
    """Whether norms follow attention and feed-forward too."""
    window: int | None = None
    """How many tokens back every other layer, from the first, attends."""
    logit_cap: float | None = None
    compress_ratio: int = 1
    compress_layers: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """How many layers must run."""
        return max(head.layer for head in self.heads)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that give a score, ascending."""
        return tuple(head.layer for head in self.heads)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is read, with the shape it must have."""
        query, kept = self.query_heads * self.head_size, self.kv_heads * self.head_size
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.sandwich_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        layer = {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (kept, self.hidden),
            "self_attn.v_proj": (kept, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
            **dict.fromkeys(norms, (self.hidden,)),
        }
        shapes: dict[str, tuple[int, ...]] = {
            f"model.layers.{number}.{name}.weight": shape
            for number in range(self.depth)
            for name, shape in layer.items()
        }
        shapes["model.embed_tokens.weight"] = (self.vocabulary, self.hidden)
        shapes["model.norm.weight"] = (self.hidden,)
        for head in self.heads:
            rows = 1 if head.row is None else self.vocabulary
            shapes[head.tensor] = (rows, self.hidden)
        return shapes

    def is_unread(self, tensor: str) -> bool:
        """Whether the tensor is of a later layer, or of another layer's head."""
        if found := re.match(r"model\.layers\.(\d+)\.", tensor):
            return self.depth <= int(found[1]) < self.stored_layers
        return re.fullmatch(r"lm_head(\.\d+\.linear_head)?\.weight", tensor) is not None

    @property
    def description(self) -> str:
        """Layers, the heads they use and the compression, for `Scorer.name`."""
        heads = "+".join(
            f"{head.layer}:{head.tensor.removesuffix('.weight')}" for head in self.heads
        )
        if self.compress_ratio == 1 or not self.compress_layers:
            return heads
        return f"{heads},compress={self.compress_ratio}@{'+'.join(map(str, self.compress_layers))}"


def decoder_spec(
    family: Family, config: Keys, request: LayerOptions, *, yes: int, tied: bool
) -> DecoderSpec:
    """The spec for this config; `yes` is the id of "Yes", `tied` whether embeddings are the head.

    Raises `InvalidInputError`, with the allowed values, for layers or ratios the model does not
    have, `UnsupportedModel` for variants of the architecture that are not supported, and
    `CheckpointError` for a config that lacks a number: no default is guessed.
    """
    for key, allowed in {**ANY_FAMILY, **FIXED[family]}.items():
        config.check(key, allowed)
    layers, hidden = config.whole("num_hidden_layers"), config.whole("hidden_size")
    query, kept = config.whole("num_attention_heads"), config.whole("num_key_value_heads")
    size = hidden // query if family is Family.LAYERWISE else config.whole("head_dim")
    if query % kept:
        config.refuse("num_key_value_heads", f"num_attention_heads={query} is not a multiple of it")
    if size % 2:
        config.refuse("head_dim", "the size of a head must be even", value=size)
    _check_compression(family, request, layers)
    spec = DecoderSpec(
        heads=_heads(family, config, request, yes=yes, tied=tied),
        hidden=hidden,
        inner=config.whole("intermediate_size"),
        vocabulary=config.whole("vocab_size"),
        stored_layers=layers,
        query_heads=query,
        kv_heads=kept,
        head_size=size,
        eps=config.number("rms_norm_eps"),
        rope_theta=_rope_theta(config),
        activation="gelu_tanh",
        embedding_scale=math.sqrt(hidden),
        attention_scale=size**-0.5,
        norm_offset=1.0,
    )
    if family is Family.LAYERWISE:
        return replace(
            spec,
            activation="silu",
            embedding_scale=config.number("scale_emb"),
            norm_offset=0.0,
            # of the whole depth, however early the cut-off
            residual_scale=config.number("scale_depth") / math.sqrt(layers),
        )
    if family is Family.LIGHTWEIGHT:
        cap = "final_logit_softcapping"
        return replace(
            spec,
            # no soft-cap on attention, although the config has one: the reference runs without it
            attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
            sandwich_norms=True,
            window=_window(config, layers),
            logit_cap=None if config.get(cap, 0) is None else config.number(cap),
            compress_ratio=request.compress_ratio,
            compress_layers=tuple(sorted(set(request.compress_layers))),
        )
    return spec


def _check_compression(family: Family, request: LayerOptions, layers: int) -> None:
    ratio, at = request.compress_ratio, request.compress_layers
    if family is not Family.LIGHTWEIGHT and (ratio != 1 or at):
        raise InvalidInputError(
            "compress_ratio and compress_layers are options of the lightweight model; this is a "
            f"{family} model"
        )
    wrong = [layer for layer in at if not 1 <= layer < layers]
    if wrong or (ratio > 1 and not at):
        raise InvalidInputError(
            f"compress_layers is {list(wrong or at)}, with compress_ratio={ratio}; allowed: 1 to "
            f"{layers - 1}"
        )


def _heads(
    family: Family, config: Keys, request: LayerOptions, *, yes: int, tied: bool
) -> tuple[LogitHead, ...]:
    """The heads of the layers to score at, ascending and each once; the last layer by default."""
    last, wanted = config.whole("num_hidden_layers"), request.cutoff_layers
    if family is Family.CAUSAL:
        if wanted is not None:
            raise InvalidInputError(
                "cutoff_layers is an option of the layerwise and lightweight models; this is a "
                "causal model, which scores at its last layer only"
            )
        tensor = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return (LogitHead(last, tensor, yes),)
    lightweight, start = family is Family.LIGHTWEIGHT, config.whole("start_layer")
    if start > last:
        config.refuse("start_layer", f"the model has {last} layers")
    stepped = lightweight or "layer_sep" in config
    allowed = range(start, last + 1, config.whole("layer_sep") if stepped else 1)
    cutoffs = sorted({last} if wanted is None else set(wanted))
    if not cutoffs or any(layer not in allowed for layer in cutoffs):
        step = f" in steps of {allowed.step}" if allowed.step > 1 else ""
        raise InvalidInputError(
            f"cutoff_layers is {cutoffs}; "
            f"this model scores at layers {allowed.start} to {last}{step}"
        )
    by_place = lightweight and request.head_indexing == "request"
    heads = []
    for place, layer in enumerate(cutoffs):
        own = allowed.index(layer) if lightweight else layer - start
        number = place if by_place else own
        heads.append(LogitHead(layer, f"lm_head.{number}.linear_head.weight"))
    return tuple(heads)


def _rope_theta(config: Keys) -> float:
    """The base of the rotary embedding; 10000 where the config has none.

    transformers 4 writes it as `rope_theta`, next to `rope_scaling`; transformers 5 writes both
    into `rope_parameters`, which transformers 4 ignores. They must agree.
    """
    bases = {config.number("rope_theta")} if "rope_theta" in config else set()
    for key in ("rope_scaling", "rope_parameters"):
        given = config.inside(key)
        others = [given[name] for name in given if name not in ("rope_theta", "rope_type", "type")]
        kinds = [given[name] for name in ("rope_type", "type") if name in given]
        if others or any(kind != "default" for kind in kinds):
            config.unsupported(key, "rotary embeddings without scaling")
        if "rope_theta" in given:
            bases.add(given.number("rope_theta"))
    if len(bases) > 1:
        config.refuse(
            "rope_theta",
            "rope_parameters or rope_scaling has another, and transformers 4 and 5 each read a "
            "different one: keep the one that the model was trained with",
            error=UnsupportedModel,
        )
    base = bases.pop() if bases else 10000.0
    if base < 1:
        config.refuse("rope_theta", "it must be at least 1: else angles overflow", value=base)
    return base


def _window(config: Keys, layers: int) -> int | None:
    """The sliding window of every other layer; None where the config has null."""
    alternating = [("sliding_attention", "full_attention")[number % 2] for number in range(layers)]
    if config.get("layer_types") not in (None, alternating):
        config.unsupported("layer_types", "sliding_attention and full_attention in turn")
    # null means no window; a missing key means a damaged config
    return None if config.get("sliding_window", 0) is None else config.whole("sliding_window")
