"""The decoders said again in float64: what they agree with, and what would make them disagree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from tests.local.llm import oracle, tiny_llms
from tests.local.llm.oracle import Variant
from tests.local.llm.test_golden import CASES, PAIRS, TOLERANCE, label

SHORT = [number for number, (q, p) in enumerate(PAIRS) if len(q + p) < 1000][::2]
COMPRESS = {"compress_ratio": 4, "compress_layers": [3, 6]}
CONTROLS: list[tuple[str, dict[str, Any], Variant]] = [
    ("gemma", {}, Variant(exact_gelu=True)),
    ("gemma", {}, Variant(embedding_scale=False)),
    ("minicpm", {"cutoff_layers": [5]}, Variant(residual_by_cutoff=True)),
    ("minicpm", {"cutoff_layers": [5]}, Variant(embedding_scale=False)),
    ("gemma2", {"cutoff_layers": [5]}, Variant(attention_cap=True)),
    ("gemma2", {"cutoff_layers": [5]}, Variant(exact_gelu=True)),
    ("gemma2", {"cutoff_layers": [5]}, Variant(embedding_scale=False)),
    ("gemma2", {"cutoff_layers": [5]}, Variant(final_cap=False)),
    ("gemma2-window", {}, Variant(window=False)),
    ("gemma2-window", COMPRESS, Variant(restart_positions=False)),
]


def golden(model: str, options: dict[str, Any]) -> np.ndarray:
    (case,) = (
        c
        for c in CASES
        if c["model"] == model
        and c["options"] == options
        and not c["normalize"]
        and len(c["pairs"]) == len(PAIRS)
    )
    return np.array(case["scores"]).T[SHORT]


@pytest.mark.parametrize(
    ("model", "options", "variant"), CONTROLS, ids=lambda value: str(value).replace("=True", "")
)
def test_another_reading_of_the_config_would_be_seen(
    llm: Callable[[str], Path], model: str, options: dict[str, Any], variant: Variant
) -> None:
    pairs = [PAIRS[number] for number in SHORT]
    expected = golden(model, options)
    right = oracle.scores(llm(model), pairs, options)
    wrong = oracle.scores(llm(model), pairs, options, variant)
    assert right == pytest.approx(expected, abs=TOLERANCE)
    assert np.abs(wrong - expected).max() > 10 * TOLERANCE


@pytest.mark.parametrize(
    "case", [c for c in CASES if len(c["pairs"]) > 1 and not c["normalize"]][::12], ids=label
)
def test_we_are_as_near_to_float64_as_to_the_reference(
    llm: Callable[[str], Path], case: dict[str, Any]
) -> None:
    pairs = [PAIRS[number] for number in SHORT]
    scorer = load_scorer(
        str(llm(case["model"])),
        device="cpu",
        precision="fp32",
        special_tokens="parse",
        **case["options"],
    )
    exact = oracle.scores(llm(case["model"]), pairs, case["options"])
    assert scorer.score_layers(pairs) == pytest.approx(exact, abs=TOLERANCE)


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("kind", ["gemma", "minicpm", "gemma2"])
def test_models_of_other_seeds_and_sizes(tmp_path: Path, kind: str, seed: int) -> None:
    changes: dict[str, dict[str, Any]] = {
        "gemma": {"num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 3},
        "minicpm": {"num_key_value_heads": 2, "scale_depth": 0.9, "num_hidden_layers": 6},
        "gemma2": {"num_attention_heads": 6, "sliding_window": 17, "final_logit_softcapping": 3.0},
    }
    options: dict[str, dict[str, Any]] = {
        "gemma": {},
        "minicpm": {"cutoff_layers": [4]},
        "gemma2": {"cutoff_layers": [4, 7], "compress_ratio": 5, "compress_layers": [3]},
    }
    folder = getattr(tiny_llms, f"build_{kind}")(tmp_path, seed=seed, **changes[kind])
    pairs = [PAIRS[number] for number in SHORT]
    scorer = load_scorer(
        str(folder), device="cpu", precision="fp32", special_tokens="parse", **options[kind]
    )
    exact = oracle.scores(folder, pairs, options[kind])
    assert exact.std(axis=0).min() > 0.1
    assert scorer.score_layers(pairs) == pytest.approx(exact, abs=TOLERANCE)
