"""Copies of a model folder with one thing changed, and transformers' scores of it."""

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.types import Pair

PAIRS: list[Pair] = [
    ("what is a panda?", "The giant panda is a bear that lives in China."),
    ("what is a panda?", "hi"),
    ("how many people live in Berlin?", "Berlin has 3,520,031 inhabitants."),
    ("大熊猫吃什么？", "竹子。"),
]
TOLERANCE = 2e-5


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model", dirs_exist_ok=True))


def change_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    kept = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def scores(folder: Path, pairs: Sequence[Pair] = PAIRS) -> list[float]:
    found: list[float] = (
        load_scorer(str(folder), device="cpu", precision="fp32").score(pairs).tolist()
    )
    return found


def library_scores(folder: Path, pairs: Sequence[Pair] = PAIRS) -> list[float]:
    """Transformers' own tokenizer and model, one pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    takes = inspect.signature(model.forward).parameters
    found = []
    with torch.inference_mode():
        for query, passage in pairs:
            given = tokenizer(query, passage, return_tensors="pt")
            inputs = {name: given[name] for name in given if name in takes}
            found.append(float(model(**inputs).logits[0, 0]))
    return found
