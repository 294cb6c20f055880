"""The three decoders said again in the plainest way: one sequence, double precision, numpy only.

Slow, without batches, sharing or shortcuts. `Variant` has the readings of the config that are not
the reference's, for tests that must see each of them make a difference.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bge_rerank_integrations.types import Pair

Array = NDArray[Any]

YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
PREDICT = "Predict whether passage B contains an answer to query A."


@dataclass(frozen=True)
class Variant:
    """Readings of a config; the defaults are the reference's."""

    attention_cap: bool = False
    """Gemma 2's cap on attention's logits, which its config has."""
    exact_gelu: bool = False
    """`hidden_act: gelu` by its name, with the error function."""
    residual_by_cutoff: bool = False
    """MiniCPM's residual scale from the layers that run, rather than from all."""
    embedding_scale: bool = True
    final_cap: bool = True
    window: bool = True
    restart_positions: bool = True
    """Positions count anew after a compression."""


REFERENCE = Variant()


def scores(
    folder: Path, pairs: Sequence[Pair], options: dict[str, Any], variant: Variant = REFERENCE
) -> Array:
    """Raw scores, [pairs, layers], by the rule and the numbers of FlagEmbedding."""
    model = _Model(folder, variant)
    return np.array(
        [model.score(*model.ids(query, passage, options), options) for query, passage in pairs]
    )


def input_ids(folder: Path, query: str, passage: str) -> list[int]:
    """The ids that FlagEmbedding gives the model for one pair."""
    return _Model(folder, REFERENCE).ids(query, passage, {})[0]


class _Model:
    def __init__(self, folder: Path, variant: Variant) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        self.weights = _weights(folder)
        self.variant = variant
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.kind = self.config.get("model_type")

    def ids(self, query: str, passage: str, options: dict[str, Any]) -> tuple[list[int], int, int]:
        """The input, how many ids stand before the passage, and how many behind it."""
        length = options.get("max_length", 512)
        default = PREDICT if self.kind == "cost_wise_gemma" else YES_OR_NO
        q = self._encode(options.get("query_instruction", "A: ") + query)
        q = q[: options.get("query_max_length", length * 3 // 4)]
        p = self._encode(options.get("passage_instruction", "B: ") + passage)[:length]
        separator, prompt = self._encode("\n"), self._encode(options.get("prompt", default))
        first, second = [self.config["bos_token_id"], *q], separator + p
        over = len(first) + len(second) - (length + len(separator) + len(prompt))
        if over > 0:
            second = second[:-over]
        head, tail = len(first) + len(separator), len(separator) + len(prompt)
        return first + second + separator + prompt, head, tail

    def score(self, ids: list[int], head: int, tail: int, options: dict[str, Any]) -> list[float]:
        config, w = self.config, self.weights
        depth = config["num_hidden_layers"]
        cutoffs = sorted(options.get("cutoff_layers", [depth]))
        x = w["model.embed_tokens.weight"][ids]
        if self.variant.embedding_scale:
            x = x * config.get("scale_emb", math.sqrt(config["hidden_size"]))
        positions: Array = np.arange(len(ids))
        found: list[float] = []
        for number in range(max(cutoffs) + 1):
            if number in cutoffs:
                found.append(self._head(x, number, len(found)))
            if number == max(cutoffs):
                break
            if number in options.get("compress_layers", ()):
                kept = self._pool(positions[:, None] * 1.0, head, tail, options["compress_ratio"])
                x = self._pool(x, head, tail, options["compress_ratio"])
                restart = self.variant.restart_positions
                positions = np.arange(len(x)) if restart else kept[:, 0]
            x = self._layer(x, number, positions, max(cutoffs))
        return found

    def _head(self, x: Array, layer: int, place: int) -> float:
        config, w = self.config, self.weights
        state = self._norm(x[-1:], "model.norm.weight")[0]
        if self.kind == "gemma":
            table = w.get("lm_head.weight", w["model.embed_tokens.weight"])
            return float(state @ table[self._encode("Yes")[0]])
        if self.kind == "minicpm":
            return float(
                state @ w[f"lm_head.{layer - config['start_layer']}.linear_head.weight"][0]
            )
        logit = float(state @ w[f"lm_head.{place}.linear_head.weight"][0])
        cap = config["final_logit_softcapping"]
        return cap * math.tanh(logit / cap) if cap and self.variant.final_cap else logit

    def _layer(self, x: Array, number: int, positions: Array, depth: int) -> Array:
        prefix = f"model.layers.{number}."
        scale = 1.0
        if self.kind == "minicpm":
            layers = depth if self.variant.residual_by_cutoff else self.config["num_hidden_layers"]
            scale = self.config["scale_depth"] / math.sqrt(layers)
        out = self._attention(self._norm(x, f"{prefix}input_layernorm.weight"), number, positions)
        if self.kind == "cost_wise_gemma":
            out = self._norm(out, f"{prefix}post_attention_layernorm.weight")
            before = "pre_feedforward_layernorm"
        else:
            before = "post_attention_layernorm"
        x = x + scale * out
        h = self._norm(x, f"{prefix}{before}.weight")
        gate = self._activate(h @ self.weights[f"{prefix}mlp.gate_proj.weight"].T)
        up = h @ self.weights[f"{prefix}mlp.up_proj.weight"].T
        out = (gate * up) @ self.weights[f"{prefix}mlp.down_proj.weight"].T
        if self.kind == "cost_wise_gemma":
            out = self._norm(out, f"{prefix}post_feedforward_layernorm.weight")
        return x + scale * out

    def _attention(self, h: Array, number: int, positions: Array) -> Array:
        config, prefix = self.config, f"model.layers.{number}.self_attn."
        heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim", config["hidden_size"] // heads)
        scale = config.get("query_pre_attn_scalar", size) ** -0.5
        query, key, value = (
            (h @ self.weights[f"{prefix}{name}_proj.weight"].T).reshape(len(h), -1, size)
            for name in "qkv"
        )
        query, key = (_rotate(v, positions, config["rope_theta"]) for v in (query, key))
        back = np.arange(len(h))[:, None] - np.arange(len(h))
        seen = back >= 0
        window = config.get("sliding_window")
        if self.kind == "cost_wise_gemma" and number % 2 == 0 and window and self.variant.window:
            seen &= back < window
        mixed = []
        for head in range(heads):
            group = head // (heads // shared)
            logits = query[:, head] @ key[:, group].T * scale
            if self.variant.attention_cap:
                cap = config["attn_logit_softcapping"]
                logits = cap * np.tanh(logits / cap)
            logits = np.where(seen, logits, -np.inf)
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            mixed.append(share / share.sum(axis=1, keepdims=True) @ value[:, group])
        return np.concatenate(mixed, axis=1) @ self.weights[f"{prefix}o_proj.weight"].T

    def _activate(self, x: Array) -> Array:
        if self.kind == "minicpm":
            gate = 1 / (1 + np.exp(-x))
        elif self.variant.exact_gelu:
            gate = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        else:
            gate = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        result: Array = x * gate
        return result

    def _norm(self, x: Array, name: str) -> Array:
        weight = self.weights[name] + (0 if self.kind == "minicpm" else 1)
        size = np.sqrt((x**2).mean(axis=1, keepdims=True) + self.config["rms_norm_eps"])
        result: Array = x / size * weight
        return result

    def _pool(self, x: Array, head: int, tail: int, ratio: int) -> Array:
        passage = x[head : len(x) - tail]
        groups = [
            passage[start : start + ratio].mean(axis=0) for start in range(0, len(passage), ratio)
        ]
        return np.concatenate([x[:head], *(group[None] for group in groups), x[len(x) - tail :]])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _rotate(x: Array, positions: Array, theta: float) -> Array:
    half = x.shape[2] // 2
    angles = positions[:, None, None] / theta ** (np.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=2)


@cache
def _weights(folder: Path) -> dict[str, Array]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: w.double().numpy() for file in files for name, w in load_file(file).items()}
