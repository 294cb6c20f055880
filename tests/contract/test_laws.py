"""The laws of `types.Scorer`: what every scorer keeps, whatever computes its scores."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import numpy as np
import pandas as pd
import pytest

from bge_rerank_integrations import InvalidInputError, Reranker, Scorer
from bge_rerank_integrations.types import FloatArray
from tests.contract.pairs import PAIRS, TOLERANCE
from tests.contract.subjects import Load


@cache
def scores_of_pairs(load: Load) -> FloatArray:
    """Computed once for each subject."""
    scores = load().score(PAIRS)
    scores.setflags(write=False)
    return scores


def test_is_a_scorer_of_a_known_scale(load: Load) -> None:
    scorer = load()
    assert isinstance(scorer, Scorer)
    assert scorer.name
    assert scorer.scale in ("logit", "cosine", "probability")


def test_one_finite_float32_per_pair(load: Load) -> None:
    scores = scores_of_pairs(load)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    assert scores.shape == (len(PAIRS),)
    assert np.isfinite(scores).all()
    assert scores.std() > 0.01, "scores that agree could not tell a wrong one"


def test_no_pairs_no_scores(load: Load) -> None:
    scores = load().score([])
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


def test_scores_stay_within_the_scale(load: Load) -> None:
    scorer = load()
    texts = [text for pair in PAIRS for text in pair]
    scores = scorer.score([(text, text) for text in texts])
    least, most = {"logit": (-np.inf, np.inf), "cosine": (-1, 1), "probability": (0, 1)}[
        scorer.scale
    ]
    assert scores.min() >= least
    assert scores.max() <= most


@pytest.mark.parametrize("seed", range(3))
def test_permuting_pairs_permutes_scores(load: Load, seed: int) -> None:
    order = random.Random(seed).sample(range(len(PAIRS)), len(PAIRS))
    permuted = load().score([PAIRS[index] for index in order])
    assert permuted == pytest.approx(scores_of_pairs(load)[order], abs=TOLERANCE)


def test_a_score_does_not_depend_on_its_neighbours(load: Load) -> None:
    scorer = load()
    alone = [scorer.score([pair])[0] for pair in PAIRS]
    assert scorer.score(PAIRS) == pytest.approx(alone, abs=TOLERANCE)
    assert scorer.score(PAIRS[:5]) == pytest.approx(alone[:5], abs=TOLERANCE)


def test_equal_pairs_have_exactly_equal_scores(load: Load) -> None:
    repeated = [*PAIRS, *reversed(PAIRS), *PAIRS]
    scores = load().score(repeated)
    by_pair = {pair: set() for pair in PAIRS}  # type: dict[tuple[str, str], set[float]]
    for pair, score in zip(repeated, scores.tolist(), strict=True):
        by_pair[pair].add(score)
    assert all(len(found) == 1 for found in by_pair.values())


@pytest.mark.parametrize(
    "limits",
    [
        {"batch_size": 1},
        {"batch_size": 2},
        {"batch_size": 7},
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 64},
        {"max_batch_tokens": 100_000},
        {"batch_size": 3, "max_batch_tokens": 700},
    ],
    ids=str,
)
def test_a_score_does_not_depend_on_the_batch_limits(
    load_local: Load, limits: dict[str, int]
) -> None:
    plain, limited = load_local(), load_local(**limits)
    assert limited.score(PAIRS) == pytest.approx(scores_of_pairs(load_local), abs=TOLERANCE)
    assert limited.name == plain.name


def test_sixteen_threads_give_the_sequential_scores(load: Load) -> None:
    scorer = load()
    shares = [PAIRS[start : start + 4] for start in range(16)]
    expected = [scorer.score(share) for share in shares]
    together = Barrier(16)

    def score(share: list[tuple[str, str]]) -> list[np.ndarray]:
        together.wait(60)
        return [scorer.score(share) for _ in range(2)]

    with ThreadPoolExecutor(16) as pool:
        for found, scores in zip(pool.map(score, shares), expected, strict=True):
            for again in found:
                assert again == pytest.approx(scores, abs=TOLERANCE)


async def test_two_hundred_calls_at_once_give_the_sequential_ranking(load: Load) -> None:
    reranker = Reranker(load())
    query, passages = "what is a panda?", [PAIRS[i][1] for i in (0, 1, 5)]
    lists = [passages[start:] + passages[:start] for start in range(3)]
    expected = [reranker.rerank(query, texts) for texts in lists]
    found = await asyncio.gather(*(reranker.arerank(query, lists[i % 3]) for i in range(200)))
    for number, results in enumerate(found):
        sequential = expected[number % 3]
        assert [result.index for result in results] == [result.index for result in sequential]
        assert [result.raw_score for result in results] == pytest.approx(
            [result.raw_score for result in sequential], abs=TOLERANCE
        )


def test_the_same_name_gives_the_same_scores(load: Load) -> None:
    first, second = load(), load()
    assert first.name == second.name
    assert second.score(PAIRS) == pytest.approx(scores_of_pairs(load), abs=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 24},
        {"max_length": 64, "query_max_length": 5},
        {"query_instruction": "Find the answer: "},
        {"passage_instruction": "Passage: "},
        {"special_tokens": "parse"},
    ],
    ids=str,
)
def test_another_score_means_another_name(load_local: Load, options: dict[str, object]) -> None:
    plain, other = load_local(), load_local(**options)
    assert np.abs(scores_of_pairs(load_local) - other.score(PAIRS)).max() > 100 * TOLERANCE
    assert plain.name != other.name


def test_the_callers_pairs_are_left_as_they_are(load: Load) -> None:
    pairs = list(PAIRS)
    load().score(pairs)
    assert pairs == PAIRS
    assert all(mine is given for mine, given in zip(pairs, PAIRS, strict=True))


def test_dictionaries_score_as_tuples_do(load_local: Load) -> None:
    scorer = load_local()
    pairs = [{"query": query, "passage": passage} for query, passage in PAIRS]
    before = [dict(pair) for pair in pairs]
    assert scorer.score(pairs).tolist() == scorer.score(PAIRS).tolist()  # type: ignore[arg-type]
    assert pairs == before


def test_a_data_frame_gives_a_series_with_its_index(load_local: Load) -> None:
    scorer = load_local()
    frame = pd.DataFrame(PAIRS, columns=["query", "passage"])
    frame.index = pd.Index(range(100, 100 + len(PAIRS)), name="pair")
    frame["other"] = 1
    before = frame.copy()
    series = scorer.score(frame)
    assert isinstance(series, pd.Series)
    assert series.index.equals(frame.index)
    assert series.index.name == "pair"
    assert series.tolist() == scorer.score(PAIRS).tolist()
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("bad", [None, 7, b"bytes", ["text"], float("nan")], ids=repr)
@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_text_that_is_none_is_named_by_its_position(
    load_local: Load, bad: object, side: str
) -> None:
    wrong = (bad, "text") if side == "query" else ("text", bad)
    with pytest.raises(InvalidInputError, match=f"{side} at position 2") as refused:
        load_local().score([PAIRS[0], PAIRS[1], wrong, PAIRS[2]])  # type: ignore[list-item]
    assert refused.value.index == 2
