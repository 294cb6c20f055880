"""A small cross-encoder with random weights, for a self-test without a model.

Its scores are finite and repeatable, but meaningless.
"""

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

SIZE, INNER, LAYERS, HEADS, POSITIONS = 64, 128, 4, 4, 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build_tiny_encoder(folder: Path) -> None:
    """Write config, tokenizer and weights of a four-layer BERT cross-encoder into `folder`."""
    # one token per printable ASCII character; any other is unknown
    characters = [c for c in string.printable if not c.isspace()]
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "num_labels": 1,
        "vocab_size": len(pieces),
        "hidden_size": SIZE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = np.random.default_rng(0)
    weights = {}

    def add(name: str, *shape: int) -> None:
        # wide: with the 0.02 of a fresh model all pairs would get almost the same score
        for part, size in (("weight", shape), ("bias", shape[:1])):
            weights[f"{name}.{part}"] = random.normal(scale=0.2, size=size).astype(np.float32)

    def add_norm(name: str) -> None:
        weights[f"{name}.LayerNorm.weight"] = np.ones(SIZE, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(SIZE, np.float32)

    for kind, rows in (("word", len(pieces)), ("position", POSITIONS), ("token_type", 2)):
        add(f"bert.embeddings.{kind}_embeddings", rows, SIZE)
        del weights[f"bert.embeddings.{kind}_embeddings.bias"]
    add_norm("bert.embeddings")
    for number in range(LAYERS):
        layer = f"bert.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            add(f"{layer}.attention.{part}", SIZE, SIZE)
        add(f"{layer}.intermediate.dense", INNER, SIZE)
        add(f"{layer}.output.dense", SIZE, INNER)
        add_norm(f"{layer}.attention.output")
        add_norm(f"{layer}.output")
    add("bert.pooler.dense", SIZE, SIZE)
    add("classifier", 1, SIZE)
    save_file(weights, folder / "model.safetensors")
