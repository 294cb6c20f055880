"""The three LLM rerankers with their true architecture, config keys, weight names and tokenizers.

Small, and the same to the bit on every machine and with every release: each weight is a hash of
its tensor's name, each vocabulary follows from a list of words. So only the reference's scores
have to be stored, not the models. Weights are drawn wide, so that a wrong token or layer moves a
score, but not so wide that float32's noise would.
"""

import json
import math
from collections.abc import Callable
from hashlib import shake_128
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.local.llm.tiny_tokenizers import write_gemma_tokenizer, write_llama_tokenizer

Weights = dict[str, NDArray[np.float32]]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "use_cache": True,
}

GEMMA: dict[str, Any] = {
    **SIZES,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "head_dim": 12,  # times the heads more than the hidden size, as in Gemma 2
    "hidden_act": "gelu",
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
}

MINICPM: dict[str, Any] = {
    **SIZES,
    "architectures": ["LayerWiseMiniCPMForCausalLM"],
    "auto_map": {
        "AutoConfig": "BAAI/bge-reranker-v2-minicpm-layerwise"
        "--configuration_minicpm_reranker.LayerWiseMiniCPMConfig",
        "AutoModelForCausalLM": "BAAI/bge-reranker-v2-minicpm-layerwise"
        "--modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM",
    },
    "model_type": "minicpm",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dim_model_base": 256,
    "head_multi": True,
    "head_type": "simple",
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "start_layer": 2,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
}

GEMMA2: dict[str, Any] = {
    **SIZES,
    "architectures": ["CostWiseGemmaForCausalLM"],
    "auto_map": {
        "AutoConfig": "BAAI/bge-reranker-v2.5-gemma2-lightweight--gemma_config.CostWiseGemmaConfig",
        "AutoModelForCausalLM": "BAAI/bge-reranker-v2.5-gemma2-lightweight"
        "--gemma_model.CostWiseGemmaForCausalLM",
    },
    "model_type": "cost_wise_gemma",
    "attn_logit_softcapping": 5.0,  # the published 50 would hardly show in a model this small
    "final_logit_softcapping": 30.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "cache_implementation": "hybrid",
    "head_dim": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_sep": 1,
    "layer_wise": True,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 9,  # not the head's size: Gemma 2's largest has them differ
    "rms_norm_eps": 1e-06,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "start_layer": 2,
    "torch_dtype": "float32",
    "transformers_version": "4.42.2",
}


def build_gemma(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Like bge-reranker-v2-gemma; `tie_word_embeddings=False` stores a head of its own."""
    config = {**GEMMA, **changes}
    tokens = write_gemma_tokenizer(folder)
    weights = _decoder(seed, config, tokens, head=config["head_dim"], norm_offset=1)
    if not config.get("tie_word_embeddings", True):
        weights["lm_head.weight"] = draw(seed, "lm_head.weight", (tokens, 32), 0.5)
    return _write(folder, config, tokens, weights)


def build_minicpm(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Like bge-reranker-v2-minicpm-layerwise."""
    config = {**MINICPM, **changes}
    tokens = write_llama_tokenizer(folder)
    head = config["hidden_size"] // config["num_attention_heads"]
    weights = _decoder(seed, config, tokens, head=head, norm_offset=0)
    return _write(folder, config, tokens, weights | _layer_heads(seed, config))


def build_gemma2(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Like bge-reranker-v2.5-gemma2-lightweight."""
    config = {**GEMMA2, **changes}
    tokens = write_gemma_tokenizer(folder)
    weights = _decoder(seed, config, tokens, head=config["head_dim"], norm_offset=1)
    return _write(folder, config, tokens, weights | _layer_heads(seed, config))


MODELS: dict[str, Callable[[Path], Path]] = {
    "gemma": lambda folder: build_gemma(folder, seed=1),
    "gemma-untied": lambda folder: build_gemma(folder, seed=2, tie_word_embeddings=False),
    "minicpm": lambda folder: build_minicpm(folder, seed=3),
    "gemma2": lambda folder: build_gemma2(folder, seed=4),
    "gemma2-window": lambda folder: build_gemma2(
        folder, seed=5, sliding_window=24, sliding_window_size=24
    ),
    "gemma2-steps": lambda folder: build_gemma2(folder, seed=6, layer_sep=2),
}
"""The models whose reference scores are stored."""


def rewrite_weights(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """The same folder with other weights."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def rewrite_config(folder: Path, *, without: str | None = None, **changes: Any) -> Path:
    """The same folder with keys of its config changed, or one taken out."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    config.pop(without, None)
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def split_into_shards(folder: Path, count: int) -> Path:
    """The same weights in several files, as the large models store them."""
    single = folder / "model.safetensors"
    weights = load_file(single)
    single.unlink()
    places: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        shard = {name: weights[name] for name in sorted(weights)[number::count]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def draw(seed: int, name: str, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
    """Numbers from a uniform distribution around 0, taken from a hash of seed and name."""
    raw = shake_128(f"{seed}:{name}".encode()).digest(2 * math.prod(shape))
    steps = np.frombuffer(raw, dtype="<u2").astype(np.float64) - 32767.5
    width = deviation * math.sqrt(12) / 65536
    return (steps * width).astype(np.float32).reshape(shape)


def _decoder(
    seed: int, config: dict[str, Any], tokens: int, *, head: int, norm_offset: int
) -> Weights:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    asking, seen = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {
        "self_attn.q_proj": (asking, hidden),
        "self_attn.k_proj": (seen, hidden),
        "self_attn.v_proj": (seen, hidden),
        "self_attn.o_proj": (hidden, asking),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] == "cost_wise_gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]

    def norm(name: str) -> NDArray[np.float32]:
        return draw(seed, name, (hidden,), 0.2) + np.float32(1 - norm_offset)

    words = 1 / config.get("scale_emb", math.sqrt(hidden))
    weights = {
        "model.embed_tokens.weight": draw(seed, "embed", (tokens, hidden), words),
        "model.norm.weight": norm("norm"),
    }
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        for name, shape in shapes.items():
            full = f"{prefix}{name}.weight"
            # Gemma 2's norms lift everything again: wider, and float32's own noise would show
            deviation = 0.2 if len(norms) == 2 else 0.08 if name[10] in "qk" else 0.15
            weights[full] = draw(seed, full, shape, deviation)
        for name in norms:
            weights[f"{prefix}{name}.weight"] = norm(prefix + name)
    return weights


def _layer_heads(seed: int, config: dict[str, Any]) -> Weights:
    layers = range(
        config["start_layer"], config["num_hidden_layers"] + 1, config.get("layer_sep", 1)
    )
    names = [f"lm_head.{number}.linear_head.weight" for number in range(len(layers))]
    return {name: draw(seed, name, (1, config["hidden_size"]), 0.3) for name in names}


def _write(folder: Path, config: dict[str, Any], tokens: int, weights: Weights) -> Path:
    full = {**config, "vocab_size": tokens}
    (folder / "config.json").write_text(json.dumps(full, indent=2), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
