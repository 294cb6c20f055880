"""Scores equal sentence-transformers' where both cut alike: bi-encoders, and uncut pairs."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from bge_rerank_integrations import load_scorer
from tests.reference.rule import TOLERANCE, OneByOne
from tests.reference.texts import PLAIN_PAIRS

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("name", ["reranker_base", "reranker_m3", "bert_reranker"])
def test_cross_encoder(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    tokenizer = OneByOne(folder).tokenizer
    # CrossEncoder cuts the longer of the two, FlagEmbedding the passage
    uncut = [
        pair
        for pair in PLAIN_PAIRS
        if len(tokenizer.encode(*pair).ids) <= 512
        and len(tokenizer.encode(pair[0], add_special_tokens=False).ids) <= 384
    ]
    assert len(uncut) > 30
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    expected = reference.predict(uncut, batch_size=1, show_progress_bar=False)
    scorer = load_scorer(str(folder), device="cpu", precision="fp32")
    assert scorer.score(uncut) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", ["bge_embedder", "mean_embedder", "m3_embedder"])
@pytest.mark.parametrize("length", [512, 24])
def test_bi_encoder(name: str, length: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    instruction = "Represent this sentence for searching relevant passages: "
    reference = SentenceTransformer(str(folder), device="cpu")
    reference.max_seq_length = length
    queries = reference.encode([instruction + query for query, _ in PLAIN_PAIRS], batch_size=1)
    passages = reference.encode([passage for _, passage in PLAIN_PAIRS], batch_size=1)
    scorer = load_scorer(
        str(folder),
        device="cpu",
        precision="fp32",
        max_length=length,
        query_instruction=instruction,
    )
    expected = (queries * passages).sum(axis=1)
    assert scorer.score(PLAIN_PAIRS) == pytest.approx(expected, abs=TOLERANCE)
