"""What sets the three LLM rerankers apart, as values: each architecture's config to one spec.

Sources: the models' `config.json` and cards, and FlagEmbedding 1.4.2 as it behaves on transformers
4.44 to 4.47, the only releases on which all three of its classes run.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.errors import CheckpointError, InvalidInputError, UnsupportedModel
from bge_rerank_integrations.option_checks import whole_number
from bge_rerank_integrations.types import HeadIndexing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """Which layers the caller wants scores from, and how passages are compressed on the way.

    `head_indexing="request"` gives the i-th requested layer of the lightweight model head i, as
    the reference does; `"layer"` gives each layer its own.
    """

    cutoff_layers: tuple[int, ...] | None = None
    compress_ratio: int = 1
    compress_layers: tuple[int, ...] = ()
    head_indexing: HeadIndexing = "request"

    def __post_init__(self) -> None:
        for name in ("cutoff_layers", "compress_layers"):
            if (given := getattr(self, name)) is not None:
                layers = tuple(map(whole_number, given))
                if None in layers:
                    wrong = given[layers.index(None)]
                    raise InvalidInputError(f"{name} has {wrong!r}; it must hold whole numbers")
                object.__setattr__(self, name, layers)
        ratio = whole_number(self.compress_ratio)
        if ratio is None or ratio < 1:
            raise InvalidInputError(
                f"compress_ratio is {self.compress_ratio!r}; it must be a whole number from 1"
            )
        object.__setattr__(self, "compress_ratio", ratio)
        if self.head_indexing not in get_args(HeadIndexing):
            raise InvalidInputError(
                f"head_indexing is {self.head_indexing!r}; "
                f"it must be one of {', '.join(get_args(HeadIndexing))}"
            )


@dataclass(frozen=True, slots=True)
class Head:
    """The vector that turns a layer's hidden state into a logit: a tensor, or one row of it."""

    layer: int
    tensor: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything the decoder's forward needs to know about an architecture."""

    heads: tuple[Head, ...]
    hidden: int
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
    def description(self) -> str:
        """Layers, the heads they use and the compression, for `Scorer.name`."""
        heads = "+".join(
            f"{head.layer}:{head.tensor.removesuffix('.weight')}" for head in self.heads
        )
        if self.compress_ratio == 1 or not self.compress_layers:
            return heads
        return f"{heads},compress={self.compress_ratio}@{'+'.join(map(str, self.compress_layers))}"


def decoder_spec(
    family: Family, config: Mapping[str, Any], request: LayerRequest, *, yes: int, tied: bool
) -> DecoderSpec:
    """The spec for this config; `yes` is the id of "Yes", `tied` whether embeddings are the head.

    Raises `InvalidInputError`, with what is allowed, for layers or ratios the model does not have,
    `UnsupportedModel` for variants of the architecture that are not scored, and `CheckpointError`
    for a config without a number that is needed: none is made up.
    """
    if config.get("rope_scaling"):
        raise UnsupportedModel(f"rope_scaling {config['rope_scaling']!r} is not supported")
    if config.get("attention_bias"):
        raise UnsupportedModel("attention_bias is not supported")
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


def _gemma(config: Mapping[str, Any], *, yes: int, tied: bool) -> DecoderSpec:
    # what Gemma's own code reads; it leaves hidden_act aside
    _refuse_unless(config, "hidden_activation", (None, "gelu_pytorch_tanh"))
    size = _whole(config, "head_dim")
    tensor = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return DecoderSpec(
        heads=(Head(_whole(config, "num_hidden_layers"), tensor, yes),),
        # the config says "gelu", which Gemma's own code has always read as its tanh form
        activation="gelu_tanh",
        embedding_scale=math.sqrt(_whole(config, "hidden_size")),
        attention_scale=size**-0.5,
        norm_offset=1.0,
        **_sizes(config, size),
    )


def _minicpm(config: Mapping[str, Any], request: LayerRequest) -> DecoderSpec:
    if not config.get("head_multi", False) or config.get("head_type") != "simple":
        raise UnsupportedModel(
            f"head_type {config.get('head_type')!r} with head_multi={config.get('head_multi')} is "
            "not supported; supported: one 'simple' head per layer"
        )
    _refuse_unless(config, "hidden_act", ("silu",))
    size = _whole(config, "hidden_size") // _whole(config, "num_attention_heads")
    start = _whole(config, "start_layer")
    return DecoderSpec(
        heads=tuple(
            Head(layer, f"lm_head.{layer - start}.linear_head.weight")
            for layer in _cutoffs(config, request.cutoff_layers)
        ),
        activation="silu",
        embedding_scale=_number(config, "scale_emb"),
        attention_scale=size**-0.5,
        # of the whole depth, however early the cut-off
        residual_scale=_number(config, "scale_depth")
        / math.sqrt(_whole(config, "num_hidden_layers")),
        **_sizes(config, size),
    )


def _gemma2(config: Mapping[str, Any], request: LayerRequest) -> DecoderSpec:
    _refuse_unless(config, "hidden_activation", ("gelu_pytorch_tanh",))
    _refuse_unless(config, "layer_wise", (True,))
    start, step = _whole(config, "start_layer"), _whole(config, "layer_sep")
    cutoffs = _cutoffs(config, request.cutoff_layers)
    by_layer = request.head_indexing == "layer"
    depth = _whole(config, "num_hidden_layers")
    if request.compress_ratio > 1 and not request.compress_layers:
        raise InvalidInputError(
            f"compress_ratio is {request.compress_ratio} but compress_layers is empty; "
            f"allowed: 1 to {depth - 1}"
        )
    if wrong := [layer for layer in request.compress_layers if not 1 <= layer < depth]:
        raise InvalidInputError(f"compress_layers has {wrong[0]}; allowed: 1 to {depth - 1}")
    size = _whole(config, "head_dim")
    return DecoderSpec(
        heads=tuple(
            Head(layer, f"lm_head.{(layer - start) // step if by_layer else i}.linear_head.weight")
            for i, layer in enumerate(cutoffs)
        ),
        activation="gelu_tanh",
        embedding_scale=math.sqrt(_whole(config, "hidden_size")),
        # no soft-cap on attention, although the config has one: the reference runs without it
        attention_scale=_number(config, "query_pre_attn_scalar") ** -0.5,
        norm_offset=1.0,
        sandwich_norms=True,
        window=_or_null(config, "sliding_window", _whole),
        logit_cap=_or_null(config, "final_logit_softcapping", _number),
        compress_ratio=request.compress_ratio,
        compress_layers=tuple(sorted(set(request.compress_layers))),
        **_sizes(config, size),
    )


def _sizes(config: Mapping[str, Any], head_size: int) -> dict[str, Any]:
    return {
        "hidden": _whole(config, "hidden_size"),
        "vocabulary": _whole(config, "vocab_size"),
        "stored_layers": _whole(config, "num_hidden_layers"),
        "query_heads": _whole(config, "num_attention_heads"),
        "kv_heads": _whole(config, "num_key_value_heads"),
        "head_size": head_size,
        "eps": _number(config, "rms_norm_eps"),
        "rope_theta": float(config.get("rope_theta", 10000.0)),
    }


def _cutoffs(config: Mapping[str, Any], wanted: Iterable[int] | None) -> Sequence[int]:
    """The layers to score at, ascending and each once; the last by default."""
    last, start = _whole(config, "num_hidden_layers"), _whole(config, "start_layer")
    if start > last:
        raise CheckpointError(f"config.json has start_layer={start} and {last} layers")
    # only the lightweight model has steps
    allowed = range(start, last + 1, _whole(config, "layer_sep") if "layer_sep" in config else 1)
    layers = sorted({last} if wanted is None else set(wanted))
    if not layers or any(layer not in allowed for layer in layers):
        step = f" in steps of {allowed.step}" if allowed.step > 1 else ""
        raise InvalidInputError(
            f"cutoff_layers is {layers}; "
            f"this model scores at layers {allowed.start} to {last}{step}"
        )
    return layers


def _whole(config: Mapping[str, Any], name: str) -> int:
    number = config.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CheckpointError(f"config.json has {name}={number!r}, not a whole number from 1")
    return number


def _number(config: Mapping[str, Any], name: str) -> float:
    number = config.get(name)
    if not isinstance(number, int | float) or isinstance(number, bool) or not number > 0:
        raise CheckpointError(f"config.json has {name}={number!r}, not a number above 0")
    return float(number)


def _or_null(
    config: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], T]
) -> T | None:
    """The number, or None where the config says null in so many words."""
    return None if name in config and config[name] is None else read(config, name)


def _refuse_unless(config: Mapping[str, Any], name: str, known: tuple[object, ...]) -> None:
    if config.get(name) not in known:
        raise UnsupportedModel(f"{name} {config.get(name)!r} is not supported; {known[-1]!r} is")
