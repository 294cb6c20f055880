"""What the program around us has set in torch does not change a score."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contract.pairs import PAIRS
from tests.contract.subjects import Load

SOME = PAIRS[:9]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_the_callers_autocast_does_not_leak_in(load_torch: Load) -> None:
    scorer = load_torch()
    expected = scorer.score(SOME)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(scorer.score(SOME), expected)
        assert torch.is_autocast_enabled("cpu"), "the caller's own setting stays"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_number_format_does_not_matter(load_torch: Load, dtype: torch.dtype) -> None:
    scorer = load_torch()
    expected = scorer.score(SOME)
    with default_dtype(dtype):
        assert np.array_equal(scorer.score(SOME), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_nor_does_it_while_a_model_is_loaded(load_torch: Load, dtype: torch.dtype) -> None:
    expected = load_torch().score(SOME)
    with default_dtype(dtype):
        found = load_torch(precision="fp32").score(SOME)
    assert np.array_equal(found, expected)
    assert torch.get_default_dtype() == torch.float32


def test_gradients_switched_on_or_off_do_not_matter(load_torch: Load) -> None:
    scorer = load_torch()
    expected = scorer.score(SOME)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            assert np.array_equal(scorer.score(SOME), expected)


def test_scoring_draws_no_random_numbers(load_torch: Load, tmp_path: Path) -> None:
    scorer = load_torch()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = scorer.score(SOME), scorer.score(SOME)
    assert torch.equal(torch.rand(3), expected), "the program's own draws have changed"
    assert np.array_equal(first, second)
