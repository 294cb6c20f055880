"""What only a CUDA device can show. Skipped without one: nothing here has been run by its authors.

Each test holds the device against float32 on the CPU, which the other tests hold against other
libraries.
"""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bge_rerank_integrations import OutOfMemoryError, Reranker, RerankError, load_scorer
from bge_rerank_integrations.local.device import plan_device, read_hardware
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.torch_backend.attention import AttentionShape
from bge_rerank_integrations.local.torch_backend.cuda_attention import (
    ATTENTIONS,
    LARGEST_ERROR,
    Trial,
    check_attention,
)
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.local.torch_backend.runtime import free_memory
from bge_rerank_integrations.types import FloatArray
from tests.contract.pairs import PAIRS
from tests.local.llm import tiny_llms
from tests.local.torch_backend.encoder_models import build_encoder, flat, random_sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

ENCODER = AttentionShape(heads=12, kv_heads=12, causal=False, scale=None)
GEMMA = AttentionShape(heads=8, kv_heads=1, causal=True, scale=256**-0.5)
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,  # heads of 64, as in the known models: kernels take no odd sizes
    "intermediate_size": 256,
    "max_position_embeddings": 600,
}
# These random models magnify rounding: on a CPU, half formats are off by up to 0.09 and 1.1, where
# logits spread by 1.2 to 1.9. Rows of another sequence would be off by more than all of these.
LARGEST_RMS = {"fp32": 1e-3, "fp16": 0.15, "bf16": 0.9, "fp16-autocast": 0.15}


def assert_near(found: FloatArray, exact: FloatArray, precision: str) -> None:
    assert found.shape == exact.shape
    assert np.sqrt(np.mean((found - exact) ** 2)) < LARGEST_RMS[precision]


def cuda_encoder(folder: Path, precision: Any = "auto") -> FlatEncoder:
    return flat(folder, plan=plan_device(read_hardware(), device="cuda", precision=precision))


@pytest.mark.parametrize("dtype", list(LARGEST_ERROR))
@pytest.mark.parametrize(("shape", "size"), [(ENCODER, 64), (GEMMA, 256)])
@pytest.mark.parametrize("name", ["padded", "efficient", "varlen"])
def test_an_attention_is_right_in_every_format_or_is_refused(
    name: Any, shape: AttentionShape, size: int, dtype: torch.dtype
) -> None:
    trial = Trial(shape, size, windowed=shape.causal, dtype=dtype, device="cuda:0")
    try:
        reason = check_attention(name, ATTENTIONS[name], trial)
    except RerankError as refused:
        reason = str(refused)
    runs = f"attention {name}: tried now, off by "
    refusals = () if name == "padded" else (f"attention '{name}' does not run (",)
    assert reason.startswith((runs, *refusals)), "an attention that runs must be right"


@pytest.mark.parametrize("precision", LARGEST_RMS)
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_rows_are_those_of_the_cpu(tmp_path: Path, kind: str, precision: str) -> None:
    folder = build_encoder(tmp_path, kind, **SIZES)
    alone, encoder = flat(folder), cuda_encoder(folder, precision)
    assert encoder.plan.precision == precision
    for seed, lengths in enumerate([[4, 31, 31, 7, 512], [1], [100] * 60, [3] * 70]):
        batch = random_sequences(lengths, seed=seed)
        rows = encoder.run(batch)
        assert_near(rows, alone.run(batch), precision)


@pytest.mark.parametrize("attention", ["padded", "efficient", "varlen"])
def test_an_attention_that_was_asked_for_changes_no_row(tmp_path: Path, attention: Any) -> None:
    folder = build_encoder(tmp_path, "xlmr", **SIZES)
    plan = plan_device(read_hardware(), device="cuda", attention=attention)
    encoder = flat(folder, plan=plan)
    batch = random_sequences([300, 7, 64, 1, 200])
    assert_near(encoder.run(batch), flat(folder).run(batch), "fp16")


@pytest.mark.parametrize("model", ["gemma", "minicpm", "gemma2-window"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_llm_rerankers_score_as_on_the_cpu(tmp_path: Path, model: str, precision: Any) -> None:
    folder = tiny_llms.MODELS[model](tmp_path)
    exact = load_scorer(str(folder), device="cpu", precision="fp32").score(PAIRS)
    found = load_scorer(str(folder), device="cuda", precision=precision).score(PAIRS)
    largest = 1e-3 if precision == "fp32" else 0.1 * np.abs(exact).max()
    assert found == pytest.approx(exact, abs=largest)


def test_scores_are_those_of_the_cpu_in_any_batches(reranker_base: Path) -> None:
    exact = load_scorer(str(reranker_base), device="cpu").score(PAIRS)
    every: tuple[dict[str, Any], ...] = ({}, {"batch_size": 1}, {"max_batch_tokens": 100})
    for limits in every:
        scorer = load_scorer(str(reranker_base), device="cuda", precision="fp32", **limits)
        assert scorer.score(PAIRS) == pytest.approx(exact, abs=1e-3)


def test_memory_that_runs_out_splits_batches_and_changes_no_score(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path, "xlmr", **SIZES)
    encoder = cuda_encoder(folder)
    batch = random_sequences([500] * 400)
    expected = encoder.run(batch)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # room for the weights, which are there, and 20 MB more: a batch of 200,000 tokens takes 200
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 20 * 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError) as failed:
            encoder.run(batch)
        assert is_out_of_memory(failed.value)
        del failed
        encoder.release_memory()
        halves = [encoder.run(batch[start : start + 10]) for start in range(0, 400, 10)]
        assert_near(np.concatenate(halves), expected, "fp16")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_pair_that_does_not_fit_is_named(reranker_base: Path) -> None:
    scorer = load_scorer(str(reranker_base), device="cuda")
    scorer.score(PAIRS[:1])
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        with pytest.raises(OutOfMemoryError, match=r"position \d+, of \d+ tokens.* cuda:0 "):
            scorer.score([("panda " * 300, "bear " * 300)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(scorer.score(PAIRS)).all()


def test_the_budget_is_what_is_free(tmp_path: Path) -> None:
    encoder = cuda_encoder(build_encoder(tmp_path, "xlmr", **SIZES))
    assert free_memory("cuda:0") > 0
    assert any("GB are free" in reason for reason in encoder.plan.reasons)
    # (2 * 128 + 2 * 256) * 2 bytes
    assert any("each takes about 2 kB" in reason for reason in encoder.plan.reasons)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    batch = random_sequences([500] * 100)
    encoder.run(batch)
    per_token = (torch.cuda.max_memory_allocated() - before) / 50_000
    assert per_token < 1536 / 0.6, "more than the share that is set aside for it"


def test_sixteen_threads_and_many_tasks_get_the_sequential_scores(reranker_base: Path) -> None:
    scorer = load_scorer(str(reranker_base), device="cuda", precision="fp32")
    expected = scorer.score(PAIRS)
    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(lambda _: scorer.score(PAIRS), range(64)):
            assert found == pytest.approx(expected, abs=1e-3)

    async def many() -> list[Any]:
        reranker = Reranker(scorer)
        return await asyncio.gather(*(reranker.arerank("panda", ["a", "bear"]) for _ in range(50)))

    first, *others = [[r.index for r in results] for results in asyncio.run(many())]
    assert all(order == first for order in others)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_all_devices_give_the_scores_of_one(reranker_base: Path) -> None:
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    pairs = [(query, f"{passage} {number}") for number in range(40) for query, passage in PAIRS]
    options: dict[str, Any] = {"precision": "fp32", "max_batch_tokens": 512}
    one = load_scorer(str(reranker_base), device="cuda:0", **options).score(pairs)
    for _ in range(3):
        scorer = load_scorer(str(reranker_base), device=devices, **options)
        assert scorer.score(pairs) == pytest.approx(one, abs=1e-3)


def test_the_plan_says_what_was_tried(tmp_path: Path) -> None:
    plan = cuda_encoder(build_encoder(tmp_path, "bert", **SIZES)).plan
    (about,) = [reason for reason in plan.reasons if reason.startswith("attention padded: tried")]
    assert "off by" in about
