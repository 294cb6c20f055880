"""The laws of `types.Scorer` that only an LLM's options can break.

The other laws are in tests/contract, where these models are among the subjects.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.local.scorer import LocalScorer
from tests.contract.pairs import PAIRS, TOLERANCE

COMPRESSED: dict[str, Any] = {"compress_ratio": 4, "compress_layers": [2]}

CHANGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gemma", {}, {"prompt": "Is it so?"}),
    ("gemma", {}, {"query_instruction": "query: "}),
    ("gemma", {}, {"passage_instruction": "passage: "}),
    ("gemma", {}, {"query_instruction": ""}),
    ("minicpm", {}, {"cutoff_layers": [5]}),
    ("minicpm", {"cutoff_layers": [5]}, {"cutoff_layers": [6]}),
    ("minicpm", {}, {"prompt": "Is it so?"}),
    ("gemma2", {}, {"cutoff_layers": [5]}),
    ("gemma2", {"cutoff_layers": [8]}, {"cutoff_layers": [2, 8]}),
    ("gemma2", {}, COMPRESSED),
    ("gemma2", COMPRESSED, {**COMPRESSED, "compress_ratio": 2}),
    ("gemma2", COMPRESSED, {**COMPRESSED, "compress_layers": [5]}),
    ("gemma2", COMPRESSED, {**COMPRESSED, "compress_layers": [2, 5]}),
    ("gemma2", {}, {"head_indexing": "layer"}),
    ("gemma2", {}, {"prompt": "Is it so?"}),
]


def load(folder: Path, **options: Any) -> LocalScorer:
    scorer: LocalScorer = load_scorer(str(folder), device="cpu", precision="fp32", **options)
    return scorer


@pytest.mark.parametrize(("model", "before", "after"), CHANGES, ids=str)
def test_another_score_means_another_name(
    llm: Callable[[str], Path], model: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    one, other = load(llm(model), **before), load(llm(model), **after)
    assert np.abs(one.score(PAIRS) - other.score(PAIRS)).max() > 100 * TOLERANCE
    assert one.name != other.name
    again = load(llm(model), **after)
    assert again.name == other.name
    assert again.score(PAIRS).tolist() == other.score(PAIRS).tolist()


@pytest.mark.parametrize(
    ("model", "options", "same"),
    [
        ("minicpm", {}, {"cutoff_layers": [8]}),
        ("minicpm", {"cutoff_layers": [3, 6]}, {"cutoff_layers": (6, 3, 6)}),
        ("gemma2", {"compress_layers": [3]}, {}),
        ("gemma2", COMPRESSED, {**COMPRESSED, "compress_layers": (2, 2)}),
    ],
    ids=str,
)
def test_another_way_to_say_the_same_has_the_same_name(
    llm: Callable[[str], Path], model: str, options: dict[str, Any], same: dict[str, Any]
) -> None:
    one, other = load(llm(model), **options), load(llm(model), **same)
    assert one.name == other.name
    assert one.score_layers(PAIRS).tolist() == other.score_layers(PAIRS).tolist()


def test_scorers_of_different_texts_share_the_weights(llm: Callable[[str], Path]) -> None:
    one = load(llm("minicpm"), cutoff_layers=[5])
    assert load(llm("minicpm"), cutoff_layers=[5], prompt="Is it so?")._engine is one._engine
    assert load(llm("minicpm"), cutoff_layers=[6])._engine is not one._engine


@pytest.mark.parametrize("model", ["gemma", "minicpm", "gemma2-window"])
def test_sixteen_threads_with_options_of_their_own(llm: Callable[[str], Path], model: str) -> None:
    prompts = [f"Is it so? {number}" for number in range(4)]
    scorers = [load(llm(model), prompt=prompt) for prompt in prompts]
    expected = [scorer.score_layers(PAIRS) for scorer in scorers]
    together = Barrier(16)

    def score(number: int) -> Any:
        together.wait(60)
        return scorers[number % 4].score_layers(PAIRS)

    with ThreadPoolExecutor(16) as pool:
        for number, found in enumerate(pool.map(score, range(16))):
            assert found == pytest.approx(expected[number % 4], abs=TOLERANCE)


@pytest.mark.parametrize("tokens", [1, 60, 300, 100_000])
@pytest.mark.parametrize("model", ["minicpm", "gemma2-window"])
def test_no_batch_limit_changes_a_compressed_or_early_score(
    llm: Callable[[str], Path], model: str, tokens: int
) -> None:
    options: dict[str, Any] = {"cutoff_layers": [3, 6]}
    if model == "gemma2-window":
        options |= {"compress_ratio": 3, "compress_layers": [2, 4]}
    long_query = "what is a panda and how many people live in Berlin? " * 4
    pairs = [*PAIRS, *((long_query, passage) for _, passage in PAIRS)]
    plain = load(llm(model), **options).score_layers(pairs)
    limited = load(llm(model), max_batch_tokens=tokens, **options).score_layers(pairs)
    assert plain.shape == (2 * len(PAIRS), 2)
    assert limited == pytest.approx(plain, abs=TOLERANCE)


def test_no_pairs_give_no_rows_and_a_column_for_each_layer(llm: Callable[[str], Path]) -> None:
    scorer = load(llm("minicpm"), cutoff_layers=[3, 6])
    assert scorer.score([]).shape == (0,)
    assert scorer.score_layers([]).shape == (0, 2)
