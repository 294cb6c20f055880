"""The fast paths run with the torch that is pinned, and a plan says why one does not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bge_rerank_integrations import Reranker, load_scorer
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.local.device import Hardware, plan_device, read_hardware
from bge_rerank_integrations.local.torch_backend.cpu_streams import limits_one_thread
from bge_rerank_integrations.local.torch_backend.linear import choose_gemm_path

PINNED = re.search(
    r"^torch==([\d.]+)", Path("constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(
    not (PINNED and torch.__version__.startswith(PINNED[1])), reason="this torch is not the pinned"
)
def test_every_private_operator_runs_with_the_pinned_torch(two_threads: None) -> None:
    assert read_hardware().cpu_bf16 is not None, "torch.cpu._is_avx512_bf16_supported"
    assert limits_one_thread()
    formats = [torch.float32, *([torch.bfloat16] if read_hardware().cpu_bf16 else [])]
    for dtype in formats:
        # which path is faster differs between machines; that both run does not
        path, reason = choose_gemm_path(dtype)
        assert reason.startswith(f"gemm {path}: measured now, oneDNN takes ")


def test_a_plan_and_a_trace_name_the_paths(reranker_base: Path, two_threads: None) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu")
    gemm = choose_gemm_path(torch.float32)[1]
    paths = [
        "forward flat: no padding, last layer for the first token alone",
        gemm,
        "threads: from 768 tokens on, a batch on each of 2",
    ]
    assert scorer.plan.reasons[-3:] == tuple(paths)
    assert scorer.plan.paths.split("; ") == paths
    traces: list[RerankTrace] = []
    Reranker(scorer, on_trace=traces.append).rerank("panda", ["a bear", "bread"])
    assert traces[0].facts["paths"] == scorer.plan.paths


@pytest.mark.parametrize(
    ("threads", "said"),
    [
        (1, "threads: one"),
        (5, "threads: 5 share each product; one batch per core is for at most 4"),
    ],
)
def test_a_plan_says_why_cores_share_a_product(
    reranker_base: Path, two_threads: None, threads: int, said: str
) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu")
    torch.set_num_threads(threads)
    assert scorer.plan.reasons[-1] == said


def test_onednn_operators_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOperators:
        """As a release of torch that has renamed them."""

    monkeypatch.setattr(torch.ops, "mkldnn", NoOperators())
    found = choose_gemm_path.__wrapped__(torch.float32)
    assert found == ("plain", "gemm plain: oneDNN's operators do not run (AttributeError)")


def test_a_torch_that_cannot_tell_what_the_cpu_has_is_named() -> None:
    unknown = Hardware(cores=2, cpu_bf16=None)
    said = "precision fp32: this torch cannot tell whether the CPU has bf16 instructions"
    assert said in plan_device(unknown, precision="bf16").reasons
    assert said in plan_device(unknown, prefer="bf16").reasons
    known = plan_device(Hardware(cores=2), prefer="bf16")
    assert "precision fp32: this CPU has no bf16 instructions" in known.reasons
