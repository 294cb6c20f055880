"""A small cross-encoder with random weights, for a self-test without a model.

Its scores are finite and repeatable, but meaningless.
"""

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

from bge_rerank_integrations.local.checkpoint import Keys
from bge_rerank_integrations.local.model_config import read_encoder_config
from bge_rerank_integrations.local.torch_backend.encoder_weights import body_shapes

SIZE, POSITIONS = 64, 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build_tiny_encoder(folder: Path) -> None:
    """Write config, tokenizer and weights of a four-layer BERT cross-encoder into `folder`."""
    # one token per printable ASCII character; any other is unknown
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)})
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_labels": 1,
        "vocab_size": len(pieces),
        "hidden_size": SIZE,
        "intermediate_size": 2 * SIZE,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    body = body_shapes(read_encoder_config(Keys("config.json", config)))
    shapes = {f"bert.{name}": shape for name, shape in body.items()}
    shapes |= {"bert.pooler.dense.weight": (SIZE, SIZE), "bert.pooler.dense.bias": (SIZE,)}
    shapes |= {"classifier.weight": (1, SIZE), "classifier.bias": (1,)}
    random = np.random.default_rng(0)
    # wide: with the 0.02 of a fresh model all pairs would get almost the same score
    weights = {
        name: np.full(shape, name.endswith("weight"), np.float32)
        if "LayerNorm" in name
        else random.normal(scale=0.2, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
