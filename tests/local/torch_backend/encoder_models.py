"""Encoders of any configuration on disk, and transformers' own numbers for the same ids."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.types import FloatArray

VOCABULARY = 200
KINDS: dict[str, tuple[Callable[..., Any], Callable[..., PreTrainedModel], Callable[..., Any]]] = {
    "bert": (BertConfig, BertForSequenceClassification, BertModel),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, RobertaModel),
    "xlmr": (XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel),
}
CPU = DevicePlan(
    device="cpu",
    dtype="float32",
    autocast=False,
    attention="runs",
    max_batch_tokens=2048,
    reasons=(),
)


def build_encoder(folder: Path, kind: str, *, head: bool = True, **changes: Any) -> Path:
    """Write config and weights of a random encoder; `changes` go to its configuration."""
    make_config, with_head, bare = KINDS[kind]
    config = make_config(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 66 if kind != "bert" else 64,
            "num_labels": 1,
            **changes,
        }
    )
    model = (with_head if head else bare)(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            draw = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * draw if "LayerNorm.weight" in name else 0.3 * draw)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def flat(folder: Path, output: ModelOutput = "logit", plan: DevicePlan = CPU) -> FlatEncoder:
    return FlatEncoder(Checkpoint(str(folder), folder), plan, output)


def random_sequences(
    lengths: Sequence[int], *, seed: int = 0, least: int = 5
) -> list[TokenSequence]:
    """Ids from `least` up; the first part of each is its first segment."""
    dice = np.random.default_rng(seed)
    return [
        TokenSequence(dice.integers(least, VOCABULARY, length).astype(np.int32), 1 + length // 3)
        for length in lengths
    ]


def library_rows(
    folder: Path,
    batch: Sequence[TokenSequence],
    output: ModelOutput = "logit",
    *,
    half: str = "",
    dtype: torch.dtype = torch.float32,
) -> FloatArray:
    """The library's own forward, one sequence at a time: no batch, no padding, no mask.

    `half` rounds the weights to that number format first, and computes in float32. `dtype` is the
    format of weights and arithmetic.
    """
    kind: Any = AutoModelForSequenceClassification if output == "logit" else AutoModel
    model = kind.from_pretrained(folder, dtype=dtype).eval()
    if half:
        model = model.to(getattr(torch, half)).float()
    rows = []
    for sequence in batch:
        inputs = {"input_ids": torch.tensor([sequence.ids.tolist()])}
        if model.config.type_vocab_size > 1:
            rest = len(sequence.ids) - sequence.first_segment
            inputs["token_type_ids"] = torch.tensor([[0] * sequence.first_segment + [1] * rest])
        with torch.inference_mode():
            out = model(**inputs)
        if output == "logit":
            rows.append(out.logits[0])
        else:
            states = out.last_hidden_state[0]
            rows.append(states[0] if output == "cls" else states.mean(dim=0))
    result: FloatArray = torch.stack(rows).numpy()
    return result
