"""Gemma's architecture with random float32 weights, for the races of LLM rerankers.

The tokenizer is the tests' own; the vocabulary is filled up to its true number without words.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
HEAD = 256
"""The width of one attention head; keys and values have one head alone."""


@dataclass(frozen=True, slots=True)
class GemmaShape:
    """The sizes of a Gemma; `hidden` is a multiple of `HEAD`."""

    hidden: int
    layers: int
    ffn: int
    vocabulary: int = 256_000


GEMMAS = {
    "gemma-4-layers": GemmaShape(1024, 4, 16384),  # most of v2-gemma's width, 2 GB
    "gemma": GemmaShape(2048, 18, 16384),  # bge-reranker-v2-gemma, 10 GB
    "gemma-tiny": GemmaShape(256, 2, 512, 4000),  # to try the benchmark itself
}


def write_gemma(folder: Path, shape: GemmaShape) -> None:
    """Write a model folder in shards of one layer each, so that one at a time is in memory."""
    from safetensors.numpy import save_file

    from tests.local.llm.tiny_llms import GEMMA
    from tests.local.llm.tiny_tokenizers import write_gemma_tokenizer

    write_gemma_tokenizer(folder)
    config = {
        **GEMMA,
        # v2-gemma says "gelu", which transformers reads as this form or not, by its release
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // HEAD,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "vocab_size": shape.vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(shape), start=1):
        file = f"model-{number:05}-of-{shape.layers + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(shape: GemmaShape) -> Iterator[Weights]:
    draw = np.random.default_rng(0)
    hidden, ffn = shape.hidden, shape.ffn

    def weight(*sizes: int) -> NDArray[np.float32]:
        # uniform, of the standard deviation 0.02 that such models begin with
        return (draw.random(sizes, dtype=np.float32) - np.float32(0.5)) * np.float32(0.07)

    norm = np.zeros(hidden, dtype=np.float32)
    yield {
        "model.embed_tokens.weight": weight(shape.vocabulary, hidden),
        "model.norm.weight": norm,
    }
    for number in range(shape.layers):
        layer = {
            "self_attn.q_proj": weight(hidden, hidden),
            "self_attn.k_proj": weight(HEAD, hidden),
            "self_attn.v_proj": weight(HEAD, hidden),
            "self_attn.o_proj": weight(hidden, hidden),
            "mlp.gate_proj": weight(ffn, hidden),
            "mlp.up_proj": weight(ffn, hidden),
            "mlp.down_proj": weight(hidden, ffn),
            "input_layernorm": norm,
            "post_attention_layernorm": norm.copy(),  # a file may not have one array twice
        }
        yield {f"model.layers.{number}.{name}.weight": array for name, array in layer.items()}
