"""The recipe for a LoRA adapter gives a folder whose scores are those of the adapted model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bge_rerank_integrations import load_scorer
from tests.docs.test_docs_snippets import ROOT, blocks
from tests.local.llm.oracle import input_ids
from tests.local.llm.tiny_llms import build_gemma
from tests.tiny_models import build_reranker_base

# peft asks transformers for a name that it renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PAIR = ("what do pandas eat", "giant pandas eat bamboo")


def recipe(library: str) -> Any:
    """`merge` of docs/recipes.md, with the class that the text names for the model."""
    [code] = [
        block.code
        for block in blocks(ROOT / "docs" / "recipes.md", {"python"})
        if "def merge" in block.code
    ]
    names: dict[str, Any] = {}
    exec(code.replace("AutoModelForSequenceClassification", library), names)
    return names["merge"]


def adapt(model: Any, task: str, modules: list[str], folder: Path) -> Any:
    """The model with a random adapter, which is saved in the folder."""
    torch.manual_seed(0)
    settings = LoraConfig(task_type=task, r=2, init_lora_weights=False, target_modules=modules)
    adapted = get_peft_model(model, settings).eval()
    adapted.save_pretrained(str(folder))
    return adapted


def test_a_merged_cross_encoder_scores_as_the_adapted_model(tmp_path: Path) -> None:
    base = build_reranker_base(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base)
    adapted = adapt(model, "SEQ_CLS", ["query", "value"], tmp_path / "adapter")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        expected = float(adapted(**tokenizer(*PAIR, return_tensors="pt")).logits)
    check(tmp_path, base, "AutoModelForSequenceClassification", expected)


def test_a_merged_llm_reranker_scores_as_the_adapted_model(tmp_path: Path) -> None:
    base = build_gemma(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = adapt(model, "CAUSAL_LM", ["q_proj", "v_proj"], tmp_path / "adapter")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        logits = adapted(torch.tensor([input_ids(base, *PAIR)])).logits
    yes = tokenizer("Yes", add_special_tokens=False).input_ids[0]
    check(tmp_path, base, "AutoModelForCausalLM", float(logits[0, -1, yes]))


def check(folder: Path, base: Path, library: str, expected: float) -> None:
    """The folder that the recipe writes scores as expected, and not as the base model."""
    recipe(library)(base, folder / "adapter", folder / "merged")
    [score] = load_scorer(folder / "merged", precision="fp32").score([PAIR])
    [before] = load_scorer(base, precision="fp32").score([PAIR])
    assert score == pytest.approx(expected, abs=2e-5)
    assert abs(score - before) > 1e-2
