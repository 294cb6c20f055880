"""The recipe for a LoRA adapter gives a folder whose scores are those of the adapted model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

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


def adapted(library: str, base: Path, task: str, modules: list[str]) -> tuple[Any, Any]:
    """The model with a random adapter, which is saved beside it, and its tokenizer."""
    torch.manual_seed(0)
    model = getattr(transformers, library).from_pretrained(base)
    settings = LoraConfig(task_type=task, r=2, init_lora_weights=False, target_modules=modules)
    with_adapter = get_peft_model(model, settings).eval()
    with_adapter.save_pretrained(str(base.parent / "adapter"))
    return with_adapter, transformers.AutoTokenizer.from_pretrained(base)


@torch.inference_mode()
def test_a_merged_cross_encoder_scores_as_the_adapted_model(tmp_path: Path) -> None:
    library, base = "AutoModelForSequenceClassification", build_reranker_base(tmp_path / "base")
    model, tokenizer = adapted(library, base, "SEQ_CLS", ["query", "value"])
    check(library, base, float(model(**tokenizer(*PAIR, return_tensors="pt")).logits))


@torch.inference_mode()
def test_a_merged_llm_reranker_scores_as_the_adapted_model(tmp_path: Path) -> None:
    library, base = "AutoModelForCausalLM", build_gemma(tmp_path / "base")
    model, tokenizer = adapted(library, base, "CAUSAL_LM", ["q_proj", "v_proj"])
    yes = tokenizer("Yes", add_special_tokens=False).input_ids[0]
    check(library, base, float(model(torch.tensor([input_ids(base, *PAIR)])).logits[0, -1, yes]))


def check(library: str, base: Path, expected: float) -> None:
    """The folder that the recipe writes scores as expected, and not as the base model."""
    merged = base.parent / "merged"
    recipe(library)(base, base.parent / "adapter", merged)
    [score] = load_scorer(merged, precision="fp32").score([PAIR])
    [before] = load_scorer(base, precision="fp32").score([PAIR])
    assert score == pytest.approx(expected, abs=2e-5)
    assert abs(score - before) > 1e-2
