"""A cross-encoder of random weights, built in a moment, for a self-test without a model.

Its scores are finite and repeatable, and mean nothing.
"""

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from bge_rerank_integrations.types import FloatArray

HIDDEN, INNER, LAYERS, HEADS, POSITIONS = 64, 128, 4, 4, 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build_tiny_encoder(folder: Path) -> None:
    """Write config, tokenizer and weights of a BERT cross-encoder of four layers into `folder`."""
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_labels": 1,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(_weights(tokenizer.get_vocab_size()), folder / "model.safetensors")


def _tokenizer() -> Tokenizer:
    """One token per printable ASCII character; any other is unknown."""
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer(
        WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token=SPECIAL[1])
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _weights(vocabulary: int) -> dict[str, FloatArray]:
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> FloatArray:
        # wide: at the 0.02 of a fresh model every pair would get almost the same score
        return random.normal(scale=0.3, size=shape).astype(np.float32)

    weights: dict[str, FloatArray] = {}

    def dense(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = drawn(rows, columns), drawn(rows)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = np.ones(HIDDEN, np.float32)
        weights[f"{name}.bias"] = np.zeros(HIDDEN, np.float32)

    rows = {"word": vocabulary, "position": POSITIONS, "token_type": 2}
    for kind, count in rows.items():
        weights[f"bert.embeddings.{kind}_embeddings.weight"] = drawn(count, HIDDEN)
    norm("bert.embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"bert.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            dense(f"{layer}.attention.{part}", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", INNER, HIDDEN)
        dense(f"{layer}.output.dense", HIDDEN, INNER)
        norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", HIDDEN, HIDDEN)
    dense("classifier", 1, HIDDEN)
    return weights
