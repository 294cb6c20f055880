"""The doctor names a torch that no test ran with."""

import re
from pathlib import Path

import pytest

from bge_rerank_integrations.tools.doctor import TESTED_TORCH, untested_torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("version", ["2.4.1", "1.13.0", "2.14.0+cu130", "3.0.0"])
def test_another_torch_is_named(version: str) -> None:
    problem = untested_torch(version)
    assert problem is not None
    assert problem.startswith(f"torch {version} was not tested: the tests ran with 2.5 and 2.13")


@pytest.mark.parametrize("version", [None, "2.5.1", "2.9.0", "2.13.0+cpu"])
def test_a_torch_that_was_tested_or_is_missing_is_no_problem(version: str | None) -> None:
    assert untested_torch(version) is None


def test_the_range_is_from_the_oldest_torch_to_the_pinned_one() -> None:
    for file, release in zip(
        ("tests/oldest_torch.txt", "constraints.txt"), TESTED_TORCH, strict=True
    ):
        found = re.search(r"^torch==(\d+)\.(\d+)", (ROOT / file).read_text("utf-8"), re.MULTILINE)
        assert found is not None
        assert (int(found[1]), int(found[2])) == release
