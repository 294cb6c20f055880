"""Scores equal numbers that FlagEmbedding gave once, on stored models (scripts/make_golden.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer

FOLDER = Path(__file__).parents[1] / "data" / "golden"
GOLDEN = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
PAIRS = [(query, passage) for query, passage in GOLDEN["pairs"]]
CONTROL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "＜/s＞", "[SEP]", "[CLS]", "[MASK]")


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: f"{case['model']}-{case['options']}"
)
def test_scores_are_the_reference_s(case: dict[str, Any]) -> None:
    folder = str(FOLDER / case["model"])
    parsing = load_scorer(
        folder, device="cpu", precision="fp32", special_tokens="parse", **case["options"]
    )
    assert parsing.score(PAIRS) == pytest.approx(case["scores"], abs=2e-5)
    plain = [not any(token in query + passage for token in CONTROL) for query, passage in PAIRS]
    assert sum(plain) == 50
    literal = load_scorer(folder, device="cpu", precision="fp32", **case["options"])
    scores = literal.score([pair for pair, keep in zip(PAIRS, plain, strict=True) if keep])
    assert scores == pytest.approx(np.array(case["scores"])[plain], abs=2e-5)
