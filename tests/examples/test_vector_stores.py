"""The example's stores, in memory or in a folder; `make test-stores` installs them."""

import re
from pathlib import Path

import pytest

from tests.examples.test_examples import ANSWER, QUESTION, run_example

pytest.importorskip("pgserver", reason="make test-stores installs the stores")


@pytest.mark.parametrize("framework", ["llama-index", "langchain"])
@pytest.mark.parametrize("store", ["qdrant", "chroma", "pgvector"])
def test_the_answer_comes_first(store: str, framework: str, tmp_path: Path) -> None:
    options = ("--store", store, "--framework", framework, QUESTION)
    printed = run_example("vector_stores.py", *options, cache=tmp_path)
    found = re.findall(r"^  (0\.\d{4})  was +(\d+)  (.+)$", printed, flags=re.MULTILINE)
    assert len(found) == 3
    assert found[0][2].startswith(ANSWER)
    scores = [float(score) for score, _, _ in found]
    assert scores[0] > 0.95
    assert scores == sorted(scores, reverse=True)
    assert all(1 <= int(before) <= 20 for _, before, _ in found)
