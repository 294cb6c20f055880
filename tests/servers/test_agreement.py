"""Real servers and our own scorer give the same scores for the same model."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations import Pair, Reranker
from tests.servers.kinds import INFINITY
from tests.servers.scores import connect, local_scores, tolerance
from tests.servers.serving import MODEL, Running, post
from tests.tiny_models import TEXT

QUERIES = ("what is a panda", "什么是大熊猫？", "How many people live in Berlin?")
ODD = (
    "🐼 bear",
    "ein e\u0301 und é",
    "a\x00b",
    "the\tgiant\r\nbear",
    "  the  giant  bear  ",
    "ﬁrst ＢＥＡＲ ①",
    "\u202egiant\u202c panda",
    '{"document": "the bear"}',
    "{query} {document}",
)


def passages(count: int) -> list[str]:
    """Texts of 1 to 40 words that the model knows, no two alike."""
    draw = random.Random(0)
    words = sorted(set(TEXT.split()))
    return [
        " ".join([*draw.choices(words, k=draw.randrange(1, 40)), str(number)])
        for number in range(count)
    ]


def test_scores_are_those_of_the_local_model(served: Running, reranker_folder: Path) -> None:
    pairs: list[Pair] = [(query, passage) for query in QUERIES for passage in passages(20)]
    scorer = connect(served)
    ours = local_scores(reranker_folder, pairs, scale=scorer.scale)
    assert np.ptp(ours) > 20 * tolerance(served.kind)  # or agreement would say little
    np.testing.assert_allclose(scorer.score(pairs), ours, rtol=0, atol=tolerance(served.kind))


def test_the_server_is_recognised(served: Running, reranker_folder: Path) -> None:
    pairs: list[Pair] = [(QUERIES[0], passage) for passage in passages(5)]
    scorer = connect(served, dialect="auto")
    np.testing.assert_allclose(
        scorer.score(pairs),
        local_scores(reranker_folder, pairs, scale=scorer.scale),
        rtol=0,
        atol=tolerance(served.kind),
    )


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts_are_scored_alike(served: Running, reranker_folder: Path, text: str) -> None:
    pairs: list[Pair] = [(QUERIES[0], text), (text, passages(1)[0])]
    scorer = connect(served)
    np.testing.assert_allclose(
        scorer.score(pairs),
        local_scores(reranker_folder, pairs, scale=scorer.scale),
        rtol=0,
        atol=tolerance(served.kind),
    )


def test_many_passages_keep_their_places(served: Running, reranker_folder: Path) -> None:
    pairs: list[Pair] = [(QUERIES[0], passage) for passage in passages(300)]
    scorer = connect(served)
    np.testing.assert_allclose(
        scorer.score(pairs),
        local_scores(reranker_folder, pairs, scale=scorer.scale),
        rtol=0,
        atol=tolerance(served.kind),
    )


def test_a_request_beyond_the_servers_limit_is_split(
    served: Running, reranker_folder: Path
) -> None:
    if served.kind is not INFINITY:
        pytest.skip(f"{served.kind.name} has no limit of passages; Infinity takes 2048")
    pairs: list[Pair] = [(QUERIES[0], passage) for passage in passages(2100)]
    status, _ = post(
        f"{served.url}/rerank",
        {"model": MODEL, "query": QUERIES[0], "documents": [text for _, text in pairs]},
    )
    assert status == 422
    scorer = connect(served, batch_size=len(pairs))
    np.testing.assert_allclose(
        scorer.score(pairs),
        local_scores(reranker_folder, pairs),
        rtol=0,
        atol=tolerance(served.kind),
    )


def test_the_order_is_that_of_the_local_model(served: Running, reranker_folder: Path) -> None:
    texts = passages(40)
    scorer = connect(served)
    ours = local_scores(reranker_folder, [(QUERIES[0], text) for text in texts], scale=scorer.scale)
    ranked = [result.index for result in Reranker(scorer).rerank(QUERIES[0], texts)]
    assert sorted(ranked) == list(range(40))
    for earlier, later in itertools.pairwise(ranked):
        assert ours[earlier] >= ours[later] - 2 * tolerance(served.kind)


def test_equal_inputs_stay_within_the_tolerance_and_equal_pairs_are_equal(served: Running) -> None:
    # white space is no token, so these are one input for the model; a server may put them into
    # batches of different shapes
    texts = ["the giant bear", "the  giant bear", " the giant bear", "the giant bear"]
    scores = connect(served).score([(QUERIES[0], text) for text in texts])
    assert scores[0] == scores[3]
    assert np.ptp(scores) <= tolerance(served.kind)
