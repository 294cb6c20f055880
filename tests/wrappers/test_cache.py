"""A cached scorer gives the scorer's own numbers, and asks for none twice, also after a failure."""

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.errors import (
    NonFiniteScoreError,
    ScorerContractError,
    ScoringTimeout,
)
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore, ScoreStore, pair_keys
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.fakes import FailingScorer, StatedScorer, WordOverlapScorer

PAIRS: list[Pair] = [
    ("red fox", "a red fox"),
    ("red fox", "a dog"),
    ("dog", "a dog"),
    ("red fox", "a red hat"),
]
SCORES = [2.0, 0.0, 1.0, 1.0]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ScoreStore:
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "scores.db")


def test_a_pair_is_scored_once(store: ScoreStore) -> None:
    scorer = WordOverlapScorer()
    cached = CachedScorer(scorer, store)
    for _ in range(3):
        assert cached.score(PAIRS).tolist() == SCORES
    assert (scorer.calls, scorer.pairs_scored) == (1, 4)


def test_only_what_is_missing_is_scored_in_one_call_in_its_order(store: ScoreStore) -> None:
    scorer = StatedScorer()
    cached = CachedScorer(scorer, store)
    cached.score([("q", "2"), ("q", "4")])
    again = [("q", "5"), ("q", "4"), ("q", "1"), ("q", "5"), ("q", "2"), ("q", "3")]
    assert cached.score(again).tolist() == [5, 4, 1, 5, 2, 3]
    assert scorer.asked[1:] == [[("q", "5"), ("q", "1"), ("q", "3")]]


def test_name_and_scale_are_the_scorers_own(store: ScoreStore) -> None:
    scorer = StatedScorer()
    scorer.scale = "probability"
    cached = CachedScorer(scorer, store)
    assert (cached.name, cached.scale) == ("stated", "probability")


def test_scorers_of_two_names_share_a_store_and_no_score(store: ScoreStore) -> None:
    first, second = WordOverlapScorer("first"), StatedScorer()
    assert CachedScorer(first, store).score([("1 2", "1")]).tolist() == [1]
    assert CachedScorer(second, store).score([("1 2", "1")]).tolist() == [1]
    assert len(second.asked) == 1, "not taken from the other scorer"
    namesake = WordOverlapScorer("first")
    assert CachedScorer(namesake, store).score([("1 2", "1")]).tolist() == [1]
    assert namesake.calls == 0


@given(scores=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_every_float32_comes_back_to_the_bit(scores: list[float]) -> None:
    with TemporaryDirectory() as folder:
        for store in (MemoryStore(), SqliteStore(Path(folder) / "scores.db")):
            given_scores = {bytes([number] * 32): score for number, score in enumerate(scores)}
            store.put(given_scores)
            back = store.get(list(given_scores))
            assert [np.float32(back[key]).tobytes() for key in given_scores] == [
                np.float32(score).tobytes() for score in scores
            ]


@given(
    names=st.tuples(st.text(max_size=3), st.text(max_size=3)),
    first=st.tuples(st.text(max_size=3), st.text(max_size=3)),
    second=st.tuples(st.text(max_size=3), st.text(max_size=3)),
)
def test_keys_are_equal_exactly_where_name_and_texts_are(
    names: tuple[str, str], first: Pair, second: Pair
) -> None:
    one, other = pair_keys(names[0], [first])[0], pair_keys(names[1], [second])[0]
    assert (one == other) == ((names[0], first) == (names[1], second))
    assert len(one) == 32


def test_texts_that_run_together_are_kept_apart() -> None:
    shifted: list[Pair] = [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("a\0b", "c")]
    assert len(set(pair_keys("n", shifted))) == len(shifted)
    assert pair_keys("na", [("b", "c")]) != pair_keys("n", [("ab", "c")])


def test_what_a_failure_leaves_is_kept_and_told_with_the_hits(store: ScoreStore) -> None:
    failing = FailingScorer(ScoringTimeout, scored=1)
    CachedScorer(WordOverlapScorer("failing"), store).score(PAIRS[1:2])
    with pytest.raises(ScoringTimeout, match="the server is down") as raised:
        CachedScorer(failing, store).score(PAIRS)
    assert raised.value.partial is not None
    assert raised.value.partial.dtype == np.float32
    assert raised.value.partial.tolist() == pytest.approx([2, 0, math.nan, math.nan], nan_ok=True)
    after = WordOverlapScorer("failing")
    assert CachedScorer(after, store).score(PAIRS).tolist() == SCORES
    assert after.pairs_scored == 2, "the first two are known by now"


def test_a_failure_without_any_score_still_tells_the_hits(store: ScoreStore) -> None:
    CachedScorer(WordOverlapScorer("failing"), store).score(PAIRS[2:3])
    with pytest.raises(ScoringTimeout) as raised:
        CachedScorer(FailingScorer(ScoringTimeout), store).score(PAIRS)
    assert raised.value.partial is not None
    expected = [math.nan, math.nan, 1, math.nan]
    assert raised.value.partial.tolist() == pytest.approx(expected, nan_ok=True)
    with pytest.raises(ScoringTimeout) as nothing:
        CachedScorer(FailingScorer(ScoringTimeout), store).score([("new", "new")])
    assert nothing.value.partial is None


def test_a_reranker_keeps_hits_scored_when_the_scorer_is_down(store: ScoreStore) -> None:
    CachedScorer(WordOverlapScorer("failing"), store).score(PAIRS[:2])
    reranker = Reranker(CachedScorer(FailingScorer(), store), on_error="keep")
    results = reranker.rerank("red fox", ["a cat", "a dog", "a red fox"])
    assert [(result.index, result.scored) for result in results] == [
        (2, True),
        (1, True),
        (0, False),
    ]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ([1.0, math.nan], NonFiniteScoreError),
        ([1.0, math.inf], NonFiniteScoreError),
        ([1.0], ScorerContractError),
    ],
    ids=str,
)
def test_scores_that_cannot_be_right_raise_and_are_not_kept(
    store: ScoreStore, bad: list[float], error: type[Exception]
) -> None:
    class Broken(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            return np.array(bad, dtype=np.float32)

    with pytest.raises(error):
        CachedScorer(Broken("overlap"), store).score(PAIRS[:2])
    after = WordOverlapScorer("overlap")
    assert CachedScorer(after, store).score(PAIRS[:2]).tolist() == SCORES[:2]
    assert after.pairs_scored == 2


def test_an_error_names_the_position_in_the_callers_list(store: ScoreStore) -> None:
    class NoDogs(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            for index, (_, passage) in enumerate(pairs):
                if "dog" in passage:
                    raise InvalidInputError(f"a dog at position {index}", index=index)
            return super().score(pairs)

    cached = CachedScorer(NoDogs(), store)
    cached.score([PAIRS[0], PAIRS[3]])
    with pytest.raises(InvalidInputError, match="position 2") as refused:
        cached.score([PAIRS[0], PAIRS[3], PAIRS[1]])
    assert refused.value.index == 2
    with pytest.raises(InvalidInputError, match="passage at position 1 is NoneType"):
        cached.score([PAIRS[0], ("red fox", None)])


def test_surrogates_are_the_replacement_character_as_for_every_scorer(store: ScoreStore) -> None:
    scorer = WordOverlapScorer()
    cached = CachedScorer(scorer, store)
    assert cached.score([("a \ud800", "\ufffd")]).tolist() == [1]
    assert cached.score([("a \ufffd", "\udfff")]).tolist() == [1]
    assert scorer.pairs_scored == 1


@pytest.mark.parametrize("most", [2, np.int64(2)])
def test_memory_lets_the_least_recently_used_go(most: int) -> None:
    store = MemoryStore(max_pairs=most)
    scorer = StatedScorer()
    cached = CachedScorer(scorer, store)
    for passage in ("1", "2", "1", "3"):
        cached.score([("q", passage)])
    assert len(store) == 2
    cached.score([("q", "1"), ("q", "2"), ("q", "3")])
    assert scorer.asked[-1] == [("q", "2")]


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None])
def test_memory_needs_room_for_a_pair(count: object) -> None:
    with pytest.raises(InvalidInputError, match="max_pairs is"):
        MemoryStore(max_pairs=count)  # type: ignore[arg-type]


def test_sixteen_threads_share_a_small_memory() -> None:
    cached = CachedScorer(StatedScorer(), MemoryStore(max_pairs=5))
    together = threading.Barrier(16)

    def work(number: int) -> bool:
        together.wait(60)
        mine = [str((number + step) % 24) for step in range(12)]
        return all(
            cached.score([("q", text) for text in mine]).tolist() == [float(t) for t in mine]
            for _ in range(50)
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_tokens_are_counted_by_the_scorer_or_refused() -> None:
    with pytest.raises(InvalidInputError, match="word-overlap cannot count tokens"):
        CachedScorer(WordOverlapScorer(), MemoryStore()).count_tokens(["a"])
