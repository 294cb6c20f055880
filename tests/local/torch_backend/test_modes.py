"""Settings of the caller's torch: the right score, or an error that names the setting."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bge_rerank_integrations import RerankError, load_scorer
from bge_rerank_integrations.types import FloatArray
from tests.contract.pairs import PAIRS, TOLERANCE
from tests.local.llm import tiny_llms
from tests.tiny_models import build_reranker_base

MODELS = {"encoder": build_reranker_base, "gemma": tiny_llms.MODELS["gemma"]}
NO_NUMBERS = "torch computes no numbers on this thread, in FakeTensorMode or inside torch.func"
NO_ATTENTION = "turned off every implementation of torch's attention: .*enable_math_sdp"


@contextmanager
def without_attention() -> Iterator[None]:
    backends: Any = torch.backends.cuda
    switches = [
        (backends.enable_flash_sdp, backends.flash_sdp_enabled()),
        (backends.enable_mem_efficient_sdp, backends.mem_efficient_sdp_enabled()),
        (backends.enable_math_sdp, backends.math_sdp_enabled()),
    ]
    for switch, _ in switches:
        switch(False)
    try:
        yield
    finally:
        for switch, before in switches:
            switch(before)


@contextmanager
def half_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_thread(call: Callable[[], FloatArray]) -> FloatArray:
    """On another thread than the main one, which hands its work to one without modes."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def load(folder: Path) -> Any:
    return load_scorer(folder, device="cpu", precision="fp32")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "mode",
    [torch.enable_grad, torch.inference_mode, half_by_default, lambda: torch.device("meta")],
)
def test_the_scores_stay(
    tmp_path: Path, model: str, mode: Callable[[], AbstractContextManager[object]]
) -> None:
    folder = MODELS[model](tmp_path / "model")
    scorer = load(folder)
    expected = scorer.score(PAIRS)
    again = MODELS[model](tmp_path / "again")  # loaded anew, in the mode

    def work() -> FloatArray:
        with mode():
            assert load(again).score(PAIRS) == pytest.approx(expected, abs=TOLERANCE)
            found: FloatArray = scorer.score(PAIRS)
            return found

    assert in_thread(work) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loads", [False, True], ids=["score", "load"])
@pytest.mark.parametrize("mode", [FakeTensorMode, without_attention])
def test_a_mode_without_numbers_is_named(
    tmp_path: Path,
    model: str,
    mode: Callable[[], AbstractContextManager[object]],
    loads: bool,
) -> None:
    folder = MODELS[model](tmp_path)
    scorer = None if loads else load(folder)

    def work() -> FloatArray:
        with mode():
            found: FloatArray = (scorer or load(folder)).score(PAIRS)
            return found

    message = NO_NUMBERS if mode is FakeTensorMode else NO_ATTENTION
    with pytest.raises(RerankError, match=message):
        in_thread(work)
    assert in_thread(lambda: load(folder).score(PAIRS)).shape == (len(PAIRS),)


def test_scoring_inside_a_gradient_of_torch_func_is_named(reranker_base: Path) -> None:
    scorer = load(reranker_base)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return x * float(scorer.score(PAIRS[:1])[0])

    def work() -> FloatArray:
        gradient: FloatArray = torch.func.grad(loss)(torch.tensor(1.0)).numpy()
        return gradient

    with pytest.raises(RerankError, match=NO_NUMBERS):
        in_thread(work)
