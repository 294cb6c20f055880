"""Vectors of an embedder, held to the scores of the same pairs."""

from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError, UnsupportedModel, load_scorer
from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.errors import ScoringTimeout

QUERY = "what do pandas eat?"
PASSAGES = ["Pandas eat bamboo.", "Stocks fell.", "Pandas eat bamboo.", "x " * 600]


def test_products_of_vectors_are_the_scores() -> None:
    scorer = load_scorer("offline-embedder")
    (query,) = scorer.embed([QUERY], as_queries=True)
    passages = scorer.embed(PASSAGES)
    assert passages.dtype == np.float32
    assert passages.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(passages, axis=1), 1, atol=1e-6)
    scores = scorer.score([(QUERY, passage) for passage in PASSAGES])
    np.testing.assert_allclose(passages @ query, scores, atol=1e-6)


def test_the_query_instruction_is_in_a_query_s_vector_alone(bge_embedder: Path) -> None:
    scorer = load_scorer(str(bge_embedder), device="cpu", query_instruction="Find: ")
    np.testing.assert_allclose(
        scorer.embed([QUERY], as_queries=True), scorer.embed(["Find: " + QUERY]), atol=1e-6
    )
    assert np.abs(scorer.embed([QUERY], as_queries=True) - scorer.embed([QUERY])).max() > 1e-4


def test_no_texts_have_no_vectors() -> None:
    assert load_scorer("offline-embedder").embed([]).shape[0] == 0


def test_a_cross_encoder_has_no_vectors() -> None:
    with pytest.raises(UnsupportedModel, match="has no vectors; use an embedder"):
        load_scorer("offline").embed([QUERY])


def test_what_is_no_text_is_named_by_its_position() -> None:
    with pytest.raises(InvalidInputError, match="position 1"):
        load_scorer("offline-embedder").embed(["a", None])  # type: ignore[list-item]


def test_no_vector_is_made_up_when_time_is_over() -> None:
    scorer = load_scorer("offline-embedder")
    with time_limit(1e-9), pytest.raises(ScoringTimeout):
        scorer.embed(PASSAGES)
