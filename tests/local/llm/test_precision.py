"""Half formats: near float32, and exact where they overflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import NonFiniteScoreError, load_scorer
from bge_rerank_integrations.local.device import Hardware, plan_device
from tests.contract.pairs import PAIRS
from tests.local.llm import tiny_llms
from tests.local.llm.assembly import assemble, method_of
from tests.local.llm.tiny_llms import Weights, rewrite_weights

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("gemma", {}),
    ("minicpm", {"cutoff_layers": [3, 6]}),
    ("gemma2", {"cutoff_layers": [3, 6], "compress_ratio": 2, "compress_layers": [3]}),
]


@pytest.mark.parametrize(("model", "options"), MODELS, ids=str)
@pytest.mark.parametrize("attention", ["runs", "padded"])
def test_bf16_stays_near_float32(
    llm: Callable[[str], Path], model: str, options: dict[str, Any], attention: str
) -> None:
    exact = assemble(llm(model), **options).score_layers(PAIRS)
    plan = {"dtype": "bfloat16", "attention": attention}
    half = assemble(llm(model), plan=plan, **options)
    assert half.plan.precision == "bf16"
    scores = half.score_layers(PAIRS)
    difference = np.abs(scores - exact)
    assert 1e-4 < difference.max() < 0.3
    assert difference.mean() < 0.05
    # the last product is float32's, or scores would fall together in bf16's 8 bits
    assert len(np.unique(scores[:, -1])) == len(PAIRS)


def test_an_llm_prefers_bf16_where_the_hardware_has_it() -> None:
    fast = Hardware(cores=8, cpu_bf16=True)
    assert plan_device(fast, device="cpu", precision="bf16", prefer="bf16").precision == "bf16"
    assert plan_device(fast, device="cpu", prefer="bf16").precision == "bf16"
    assert plan_device(fast, device="cpu").precision == "fp32"
    slow = Hardware(cores=8, cpu_bf16=False)
    plan = plan_device(slow, device="cpu", precision="bf16", prefer="bf16")
    assert plan.precision == "fp32"
    assert "precision fp32: this CPU has no bf16 instructions" in plan.reasons


def overflowing(folder: Path) -> Path:
    """A model that leaves fp16's range, though not fp32's, wherever a text holds "panda"."""
    vocabulary = method_of(folder)[0]._parsing.get_vocab()

    def enlarge(weights: Weights) -> Weights:
        table = weights["model.embed_tokens.weight"].copy()
        table[vocabulary["▁panda"]] *= 30_000 / np.abs(table[vocabulary["▁panda"]]).max()
        return {**weights, "model.embed_tokens.weight": table}

    return rewrite_weights(folder, enlarge)


@pytest.mark.parametrize("model", ["gemma", "gemma2"])
def test_what_overflows_in_fp16_is_computed_again_alone(tmp_path: Path, model: str) -> None:
    folder = overflowing(tiny_llms.MODELS[model](tmp_path))
    half = assemble(folder, plan={"dtype": "float16"})
    assert half.plan.precision == "fp16"
    exact = assemble(folder)
    panda = np.array([" panda" in query + " " + passage for query, passage in PAIRS])
    assert 5 < panda.sum() < len(PAIRS) - 4
    scores, right = half.score(PAIRS), exact.score(PAIRS)
    assert np.isfinite(scores).all()
    assert scores[panda] == pytest.approx(right[panda], abs=1e-6)
    # the others stay in fp16, near float32 and not equal to it
    assert 1e-5 < np.abs(scores - right)[~panda].max() < 0.1
    alone = np.concatenate([half.score([pair]) for pair in PAIRS])
    assert alone == pytest.approx(scores, abs=5e-3)


def test_nan_in_float32_too_is_an_error(tmp_path: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        return {**weights, "model.norm.weight": np.full(32, np.nan, dtype=np.float32)}

    folder = rewrite_weights(tiny_llms.MODELS["gemma"](tmp_path), spoil)
    with pytest.raises(NonFiniteScoreError, match="position 0 gives nan"):
        load_scorer(str(folder), device="cpu").score(PAIRS[:1])
