"""Scores equal numbers that FlagEmbedding gave once (scripts/make_llm_golden.py)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_reranker, load_scorer

FILE = Path(__file__).parents[2] / "data" / "golden_llm" / "scores.json"
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
PAIRS = [(query, passage) for query, passage in GOLDEN["pairs"]]
CASES: list[dict[str, Any]] = GOLDEN["cases"]
TOLERANCE = 2e-5
CONTROL = ("<s>", "</s>", "<pad>", "<unk>", "<bos>", "<eos>", "<mask>")


def label(case: dict[str, Any]) -> str:
    some = "" if len(case["pairs"]) > 1 else f"-pair{case['pairs'][0]}"
    return f"{case['model']}-{case['options']}{some}"


def test_the_stored_scores_could_tell_a_wrong_one() -> None:
    assert len(CASES) > 150
    for case in CASES:
        if len(case["pairs"]) > 1 and not case["normalize"]:
            layers = np.array(case["scores"])
            assert layers.std(axis=1).min() > 0.1, "scores that agree prove nothing"
            assert np.abs(layers).max() < 10, "the tolerance is float32's noise for small numbers"


@pytest.mark.parametrize("case", [c for c in CASES if not c["normalize"]], ids=label)
def test_scores_are_the_reference_s(llm: Callable[[str], Path], case: dict[str, Any]) -> None:
    pairs = [PAIRS[number] for number in case["pairs"]]
    scorer = load_scorer(
        str(llm(case["model"])),
        device="cpu",
        precision="fp32",
        special_tokens="parse",  # as FlagEmbedding does
        **case["options"],
    )
    expected = np.array(case["scores"]).T
    assert scorer.score_layers(pairs) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("case", [c for c in CASES if c["normalize"]], ids=label)
def test_normalized_scores_are_the_reference_s(
    llm: Callable[[str], Path], case: dict[str, Any]
) -> None:
    reranker = load_reranker(
        str(llm(case["model"])), device="cpu", precision="fp32", special_tokens="parse"
    )
    for query in sorted({query for query, _ in PAIRS}):
        numbers = [number for number, pair in enumerate(PAIRS) if pair[0] == query]
        results = reranker.rerank(query, [PAIRS[number][1] for number in numbers])
        found = {result.index: result.score for result in results if result.scored}
        expected = {
            index: case["scores"][0][number]
            for index, number in enumerate(numbers)
            if PAIRS[number][1].strip()  # a reranker gives a passage without text no score
        }
        assert found == pytest.approx(expected, abs=TOLERANCE)
        assert len(results) == len(numbers) > len(found)


@pytest.mark.parametrize("model", ["gemma", "minicpm", "gemma2"])
def test_texts_without_control_tokens_need_no_parsing(
    llm: Callable[[str], Path], model: str
) -> None:
    (case,) = (
        c
        for c in CASES
        if c["model"] == model
        and not c["options"]
        and not c["normalize"]
        and len(c["pairs"]) == len(PAIRS)
    )
    plain = [not any(token in query + passage for token in CONTROL) for query, passage in PAIRS]
    assert 50 <= sum(plain) < len(PAIRS)
    scorer = load_scorer(str(llm(model)), device="cpu", precision="fp32")
    scores = scorer.score([pair for pair, keep in zip(PAIRS, plain, strict=True) if keep])
    assert scores == pytest.approx(np.array(case["scores"][0])[plain], abs=TOLERANCE)
