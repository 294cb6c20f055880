"""What sets the three LLM rerankers apart, as values: each architecture's config to one spec.

Sources: the models' `config.json` and cards, and FlagEmbedding 1.4.2 as it behaves on transformers
4.44 to 4.47, the only releases on which all three of its classes run.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import InvalidInputError, UnsupportedModel
from bge_rerank_integrations.local.checkpoint import Keys
from bge_rerank_integrations.options import LayerOptions

# The values that the forward is written for, None among them where the key may be missing or null.
# Any other value is refused. Of the keys that are not here and not read below, the reference reads
# none, or none for a score: MiniCPM's dim_model_base only for other heads than 'simple' ones, its
# pretraining_tp for the order of a sum, and Gemma 2's attn_logit_softcapping not at all, because
# the reference runs on attention without it.
ANY_FAMILY: dict[str, tuple[object, ...]] = {
    "attention_bias": (None, False),
    "pruned_heads": (None, {}),
    "use_bidirectional_attention": (None, False),
    "per_layer_config": (None, {}),
    "partial_rotary_factor": (None, 1.0, 1),
}
FIXED: dict[Family, dict[str, tuple[object, ...]]] = {
    Family.CAUSAL: {
        # "gelu" was trained as its tanh form, and is read so by transformers 4.39 to 4.47 and 5.23
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
    """Whether norms stand behind attention and feed-forward too."""
    window: int | None = None
    """How far every other layer, from the first, sees back."""
    logit_cap: float | None = None
    compress_ratio: int = 1
    compress_layers: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        """How many layers have to run."""
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

    Raises `InvalidInputError`, with what is allowed, for layers or ratios the model does not have,
    `UnsupportedModel` for variants of the architecture that are not scored, and `CheckpointError`
    for a config without a number that is needed: none is made up.
    """
    for key, allowed in {**ANY_FAMILY, **FIXED[family]}.items():
        config.check(key, allowed)
    if family is not Family.LIGHTWEIGHT and (
        request.compress_ratio != 1 or request.compress_layers
    ):
        raise InvalidInputError(
            f"compress_ratio and compress_layers are options of the lightweight model; this is a "
            f"{family} model"
        )
    if family is Family.CAUSAL:
        if request.cutoff_layers is not None:
            raise InvalidInputError(
                "cutoff_layers is an option of the layerwise and lightweight models; this is a "
                "causal model, which scores at its last layer only"
            )
        return _gemma(config, yes=yes, tied=tied)
    return (_minicpm if family is Family.LAYERWISE else _gemma2)(config, request)


def _gemma(config: Keys, *, yes: int, tied: bool) -> DecoderSpec:
    size = config.whole("head_dim")
    tensor = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return DecoderSpec(
        heads=(LogitHead(config.whole("num_hidden_layers"), tensor, yes),),
        activation="gelu_tanh",
        embedding_scale=math.sqrt(config.whole("hidden_size")),
        attention_scale=size**-0.5,
        norm_offset=1.0,
        **_sizes(config, size),
    )


def _minicpm(config: Keys, request: LayerOptions) -> DecoderSpec:
    size = config.whole("hidden_size") // config.whole("num_attention_heads")
    start = config.whole("start_layer")
    return DecoderSpec(
        heads=tuple(
            LogitHead(layer, f"lm_head.{layer - start}.linear_head.weight")
            for layer in _cutoffs(config, request.cutoff_layers)
        ),
        activation="silu",
        embedding_scale=config.number("scale_emb"),
        attention_scale=size**-0.5,
        # of the whole depth, however early the cut-off
        residual_scale=config.number("scale_depth") / math.sqrt(config.whole("num_hidden_layers")),
        **_sizes(config, size),
    )


def _gemma2(config: Keys, request: LayerOptions) -> DecoderSpec:
    start, step = config.whole("start_layer"), config.whole("layer_sep")
    cutoffs = _cutoffs(config, request.cutoff_layers)
    by_layer = request.head_indexing == "layer"
    depth = config.whole("num_hidden_layers")
    if request.compress_ratio > 1 and not request.compress_layers:
        raise InvalidInputError(
            f"compress_ratio is {request.compress_ratio} but compress_layers is empty; "
            f"allowed: 1 to {depth - 1}"
        )
    if wrong := [layer for layer in request.compress_layers if not 1 <= layer < depth]:
        raise InvalidInputError(f"compress_layers has {wrong[0]}; allowed: 1 to {depth - 1}")
    size, cap = config.whole("head_dim"), "final_logit_softcapping"
    return DecoderSpec(
        heads=tuple(
            LogitHead(
                layer, f"lm_head.{(layer - start) // step if by_layer else i}.linear_head.weight"
            )
            for i, layer in enumerate(cutoffs)
        ),
        activation="gelu_tanh",
        embedding_scale=math.sqrt(config.whole("hidden_size")),
        # no soft-cap on attention, although the config has one: the reference runs without it
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        norm_offset=1.0,
        sandwich_norms=True,
        window=_window(config),
        logit_cap=None if config.get(cap, 0) is None else config.number(cap),
        compress_ratio=request.compress_ratio,
        compress_layers=tuple(sorted(set(request.compress_layers))),
        **_sizes(config, size),
    )


def _sizes(config: Keys, head_size: int) -> dict[str, Any]:
    query, kept = config.whole("num_attention_heads"), config.whole("num_key_value_heads")
    if query % kept:
        config.refuse("num_key_value_heads", f"num_attention_heads={query} is no multiple of it")
    if head_size % 2:
        config.refuse("head_dim", "the size of a head must be even", value=head_size)
    return {
        "hidden": config.whole("hidden_size"),
        "inner": config.whole("intermediate_size"),
        "vocabulary": config.whole("vocab_size"),
        "stored_layers": config.whole("num_hidden_layers"),
        "query_heads": query,
        "kv_heads": kept,
        "head_size": head_size,
        "eps": config.number("rms_norm_eps"),
        "rope_theta": _rope_theta(config),
    }


def _cutoffs(config: Keys, wanted: Iterable[int] | None) -> Sequence[int]:
    """The layers to score at, ascending and each once; the last by default."""
    last, start = config.whole("num_hidden_layers"), config.whole("start_layer")
    if start > last:
        config.refuse("start_layer", f"the model has {last} layers")
    # only the lightweight model has steps
    allowed = range(start, last + 1, config.whole("layer_sep") if "layer_sep" in config else 1)
    layers = sorted({last} if wanted is None else set(wanted))
    if not layers or any(layer not in allowed for layer in layers):
        step = f" in steps of {allowed.step}" if allowed.step > 1 else ""
        raise InvalidInputError(
            f"cutoff_layers is {layers}; "
            f"this model scores at layers {allowed.start} to {last}{step}"
        )
    return layers


def _rope_theta(config: Keys) -> float:
    """The base of the rotary embedding, 10000 where the config says nothing of it.

    transformers 4 writes it as `rope_theta`, beside `rope_scaling`; transformers 5 writes both
    into `rope_parameters`, which 4 passes over. They must agree.
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
    return bases.pop() if bases else 10000.0


def _window(config: Keys) -> int | None:
    """The sliding window of every other layer; None where the config has null."""
    layers = config.whole("num_hidden_layers")
    alternating = [("sliding_attention", "full_attention")[number % 2] for number in range(layers)]
    if config.get("layer_types") not in (None, alternating):
        config.unsupported("layer_types", "sliding_attention and full_attention in turn")
    # null means no window; a missing key means a damaged config
    return None if config.get("sliding_window", 0) is None else config.whole("sliding_window")
