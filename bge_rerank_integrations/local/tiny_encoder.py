"""A small cross-encoder with random weights, for a self-test without a model.

Its scores are finite and repeatable, and mean nothing.
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
    # wide: with the 0.02 of a fresh model all pairs would get almost the same score
    weights = {
        name: random.normal(scale=0.2, size=shape).astype(np.float32)
        for name, shape in _shapes(len(pieces)).items()
    }
    for name in weights:
        if "LayerNorm" in name:
            weights[name] = np.full(SIZE, name.endswith("weight"), np.float32)
    save_file(weights, folder / "model.safetensors")


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    linear = {"bert.pooler.dense": (SIZE, SIZE), "classifier": (1, SIZE)}
    norms = ["bert.embeddings.LayerNorm"]
    for number in range(LAYERS):
        layer = f"bert.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{layer}.attention.{part}"] = (SIZE, SIZE)
        linear |= {
            f"{layer}.intermediate.dense": (INNER, SIZE),
            f"{layer}.output.dense": (SIZE, INNER),
        }
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    tables = {"word": vocabulary, "position": POSITIONS, "token_type": 2}
    return {
        **{f"bert.embeddings.{kind}_embeddings.weight": (n, SIZE) for kind, n in tables.items()},
        **{f"{name}.weight": shape for name, shape in linear.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linear.items()},
        **{f"{name}.{part}": (SIZE,) for name in norms for part in ("weight", "bias")},
    }
