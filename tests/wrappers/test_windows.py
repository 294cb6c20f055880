"""Every token of a long passage is read, no window is cut, and what fits is scored as ever."""

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, Scorer, load_scorer
from bge_rerank_integrations.base.trace import recording
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.types import FloatArray, Pair, PairLength
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from bge_rerank_integrations.wrappers.windows import UncutScorer, WindowedScorer, plan_windows
from tests.fakes import FailingScorer, WordOverlapScorer
from tests.local.llm import tiny_llms
from tests.tiny_models import TEXT

ENGLISH = " ".join(line for line in TEXT.splitlines() if line.isascii())
CHINESE = "".join(line for line in TEXT.splitlines() if not line.isascii())
QUERY = "what is a panda?"


class WordScorer(WordOverlapScorer):
    """A word is a token, and a passage may have `limit` of them: what is further is not read."""

    def __init__(self, limit: int = 4) -> None:
        super().__init__(f"first {limit} words")
        self.limit = limit
        self.read: list[str] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.read += [passage for _, passage in pairs]
        return super().score([(query, " ".join(p.split()[: self.limit])) for query, p in pairs])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def measure(self, pairs: Sequence[Pair]) -> list[PairLength]:
        return [PairLength(len(q.split()), 9, len(p.split()), self.limit) for q, p in pairs]

    def token_offsets(self, passages: Sequence[str]) -> list[np.ndarray]:
        found = []
        for passage in passages:
            spans, start = [], 0
            for word in passage.split():
                start = passage.index(word, start)
                spans.append((start, start + len(word)))
                start += len(word)
            found.append(np.array(spans, dtype=np.int64).reshape(-1, 2))
        return found


def characters(text: str) -> np.ndarray:
    return np.array([(i, i + 1) for i in range(len(text))], dtype=np.int64)


def pieces(text: str, offsets: np.ndarray, room: int, overlap: int) -> list[str]:
    return [text[start:end] for start, end in plan_windows(text, offsets, room, overlap)]


def test_words_behind_the_limit_count() -> None:
    passage = "one two three four five red fox eight nine ten"
    assert WordScorer().score([("red fox", passage)]).tolist() == [0]
    assert WindowedScorer(WordScorer(), overlap=1).score([("red fox", passage)]).tolist() == [2]


def test_the_best_window_wins_and_no_sum_of_them() -> None:
    passage = "red a b c d e f g fox h i j"
    assert WindowedScorer(WordScorer(), overlap=0).score([("red fox", passage)]).tolist() == [1]


def test_all_windows_are_scored_in_one_call_among_those_that_fit() -> None:
    scorer = WordScorer(2)
    scores = WindowedScorer(scorer, overlap=0).score(
        [("a d", "a"), ("a d", "x y a d"), ("a d", ""), ("a d", "a b c d e")]
    )
    assert scores.tolist() == [1, 2, 0, 1]
    assert scorer.calls == 1
    assert scorer.read == ["a", "x y", "a d", "", "a b", "c d", "e"]


def test_windows_as_a_reader_would_place_them() -> None:
    # a token is a character; a quarter of 8 is the most that windows repeat
    assert pieces("abcdefghijkl", characters("abcdefghijkl"), 8, 0) == ["abcdefgh", "ijkl"]
    assert pieces("abcdefghijkl", characters("abcdefghijkl"), 8, 2) == ["abcdefgh", "ghijkl"]
    assert pieces("abcdefghijkl", characters("abcdefghijkl"), 8, 99) == ["abcdefgh", "ghijkl"]
    # the end of a sentence within the last quarter, else of a word
    assert pieces("我们走了。他们也走", characters("我们走了。他们也走"), 6, 0) == [
        "我们走了。",
        "他们也走",
    ]
    assert pieces("aa bbb cc", characters("aa bbb cc"), 8, 0) == ["aa bbb ", "cc"]
    assert pieces("pi is 3.1415", characters("pi is 3.1415"), 8, 0) == ["pi is 3.", "1415"]
    for text in ("手法を述べる．次に結果", "यह एक है।वह दो है"):  # sentence terminators of any script
        end = 1 + max(text.find("．"), text.find("।"))
        assert pieces(text, characters(text), end + 1, 0) == [text[:end], text[end:]]
    assert pieces("円周率３．１４", characters("円周率３．１４"), 6, 0) == ["円周率３．１", "４"]


def test_a_window_begins_with_a_sentence_or_word_where_one_is_near() -> None:
    text = "Ann saw us. Bob came later on today."
    windows = pieces(text, characters(text), 20, 5)
    assert windows == ["Ann saw us. Bob came", "Bob came later on ", "later on today."]


@given(
    text=st.text(alphabet="ab .\n。", max_size=80),
    room=st.integers(1, 12),
    overlap=st.integers(0, 12),
    data=st.data(),
)
def test_every_token_is_in_a_window_and_no_window_has_too_many(
    text: str, room: int, overlap: int, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    offsets = np.array(list(itertools.pairwise(cuts)), dtype=np.int64).reshape(-1, 2)
    windows = plan_windows(text, offsets, room, overlap)
    for start, end in offsets.tolist():
        assert any(first <= start and end <= last for first, last in windows)
    for first, last in windows:
        assert sum(first <= s and e <= last for s, e in offsets.tolist()) <= room
    assert windows == sorted(set(windows))
    ends = [last for _, last in windows]
    assert ends == sorted(set(ends)), "each goes further than the one before"
    shared = min(overlap, room // 4)
    for (_, last), (first, _) in itertools.pairwise(windows):
        repeated = sum(first <= s and e <= last for s, e in offsets.tolist())
        assert shared <= repeated <= 2 * shared


def test_a_character_of_many_tokens_is_never_parted() -> None:
    offsets = np.array([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], dtype=np.int64)
    assert pieces("abc", offsets, 3, 2) == ["a", "b", "c"]
    assert pieces("abc", offsets, 4, 0) == ["ab", "c"]
    assert plan_windows("abc", offsets, 2, 0) == []


def test_no_room_for_a_character_is_an_error_that_names_the_passage() -> None:
    class Bytes(WordScorer):
        def measure(self, pairs: Sequence[Pair]) -> list[PairLength]:
            return [PairLength(1, 9, len(p.encode()), 2) for _, p in pairs]

        def token_offsets(self, passages: Sequence[str]) -> list[np.ndarray]:
            return [
                np.array([(i, i + 1) for i, c in enumerate(p) for _ in c.encode()]).reshape(-1, 2)
                for p in passages
            ]

    windowed = WindowedScorer(Bytes())
    assert windowed.windows([("q", "é")]) == [[(0, 1)]]
    with pytest.raises(InvalidInputError, match=r"passage at position 1 .* 2; shorten") as refused:
        windowed.score([("q", "ab"), ("q", "竹子")])
    assert refused.value.index == 1
    assert "竹" not in str(refused.value)


MODELS = ["reranker_base", "bert_reranker", "bge_embedder", "m3_embedder", "gemma", "gemma2-window"]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a cross-encoder, an embedder or an LLM, by words, pieces and bytes."""
    if request.param in tiny_llms.MODELS:
        return tiny_llms.MODELS[request.param](tmp_path_factory.mktemp(request.param))
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(params=[{}, {"passage_instruction": "Passage of a text: "}], ids=["", "instructed"])
def scorer(model: Path, request: pytest.FixtureRequest) -> LocalScorer:
    instruction: dict[str, Any] = request.param
    loaded: LocalScorer = load_scorer(
        str(model),
        device="cpu",
        precision="fp32",
        max_length=48,
        query_max_length=20,
        **instruction,
    )
    return loaded


LONG = [
    ENGLISH,
    CHINESE,
    ENGLISH.replace(" ", ""),
    f"{CHINESE}\n\n  {ENGLISH}",
    "a </s> b <mask> [SEP] c ＜/s＞ <pad> <eos> " * 20,
    "😀 ไทย Привет 龘龖 e\u0301 ﷺ \u200b \x00" * 20,
]
SHORT = ["", " ", "a bear", "大熊猫吃竹子。"]


def unread(scorer: LocalScorer, passage: str, windows: list[tuple[int, int]]) -> set[str]:
    """The characters of the passage, but white space, that are in a token and in no window."""
    (offsets,) = scorer.token_offsets([passage])
    in_tokens = {place for start, end in offsets.tolist() for place in range(start, end)}
    in_windows = {place for start, end in windows for place in range(start, end)}
    return {passage[place] for place in in_tokens - in_windows if not passage[place].isspace()}


def test_no_window_is_cut_and_all_of_the_text_is_in_one(
    scorer: LocalScorer, caplog: pytest.LogCaptureFixture
) -> None:
    windowed = WindowedScorer(scorer, overlap=4)
    for passage, spans in zip(LONG, windowed.windows([(QUERY, p) for p in LONG]), strict=True):
        assert len(spans) > 3
        assert unread(scorer, passage, spans) == set()
    scores = windowed.score([(QUERY, passage) for passage in LONG])
    assert np.isfinite(scores).all()
    assert [record.message for record in caplog.records if "were cut" in record.message] == []


def test_the_score_is_the_highest_of_the_windows_scored_by_themselves(scorer: LocalScorer) -> None:
    windowed = WindowedScorer(scorer, overlap=4)
    pairs = [(QUERY, passage) for passage in (*LONG, *SHORT)]
    expected = [
        max(scorer.score([(QUERY, passage[start:end])])[0] for start, end in spans)
        for (_, passage), spans in zip(pairs, windowed.windows(pairs), strict=True)
    ]
    assert windowed.score(pairs) == pytest.approx(expected, abs=1e-5)


def test_a_passage_that_fits_has_exactly_the_plain_score(scorer: LocalScorer) -> None:
    pairs = [(QUERY, passage) for passage in SHORT]
    windowed = WindowedScorer(scorer)
    assert windowed.windows(pairs) == [[(0, len(passage))] for passage in SHORT]
    assert windowed.score(pairs).tolist() == scorer.score(pairs).tolist()
    assert windowed.scale == scorer.scale


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=8), times=st.integers(5, 60))
@example(text="\x1b0<D", times=33)  # the tokenizer's last token seems to end before "<"
def test_any_text_is_read_whole(scorer: LocalScorer, text: str, times: int) -> None:
    windowed = WindowedScorer(scorer, overlap=3)
    passage = text * times
    (spans,) = windowed.windows([(QUERY, passage)])
    assert unread(scorer, passage, spans) == set()
    windows = [(QUERY, passage[start:end]) for start, end in spans]
    lengths = scorer.measure(windows)
    assert all(length.passage <= length.passage_limit for length in lengths)


def test_token_offsets_are_those_of_the_passage_itself(scorer: LocalScorer) -> None:
    for passage in ("Pandas eat bamboo.", "大熊猫吃竹子。"):
        (offsets,) = scorer.token_offsets([passage])
        assert offsets.min() == 0
        assert offsets.max() == len(passage)
        read = {place for start, end in offsets.tolist() for place in range(start, end)}
        assert {c for place, c in enumerate(passage) if place not in read} <= {" "}
        assert offsets[:, 1].tolist() == sorted(offsets[:, 1].tolist())


def test_windows_and_overlap_are_in_the_name(reranker_base: Path) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu")
    assert WindowedScorer(scorer).name == f"{scorer.name}[windows,overlap=64]"
    assert WindowedScorer(scorer, overlap=9).name != WindowedScorer(scorer).name
    assert UncutScorer(scorer).name == scorer.name


def test_passages_that_were_split_are_counted_in_the_trace() -> None:
    with recording() as recorder:
        WindowedScorer(WordScorer(2)).score([("q", "a b c d e"), ("q", "a"), ("q", "a b c")])
    assert recorder.counts == {"windows": 2}


def test_a_passage_with_a_window_missing_is_not_scored() -> None:
    class TimedOut(WordScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            partial = super().score(pairs)
            partial[3:] = math.nan
            raise ScoringTimeout("late", partial=partial)

    with pytest.raises(ScoringTimeout) as late:
        WindowedScorer(TimedOut(2), overlap=0).score(
            [("a", "a"), ("a", "a b c d"), ("a", "b c d e"), ("a", "a")]
        )
    assert late.value.partial is not None
    expected = [1, 1, math.nan, math.nan]
    assert late.value.partial.tolist() == pytest.approx(expected, nan_ok=True)


def test_a_cache_goes_around_the_windows() -> None:
    inner = WordScorer()
    cached = CachedScorer(WindowedScorer(inner, overlap=0), MemoryStore())
    passage = "one two three four five red fox eight"
    for _ in range(2):
        assert cached.score([("red fox", passage)]).tolist() == [2]
    assert inner.calls == 1
    assert cached.count_tokens([passage]) == [8]


@pytest.mark.parametrize("wrap", [WindowedScorer, UncutScorer])
@pytest.mark.parametrize(
    "inner",
    [WordOverlapScorer(), FailingScorer(), CachedScorer(WordScorer(), MemoryStore())],
    ids=lambda scorer: type(scorer).__name__,
)
def test_a_scorer_that_cannot_measure_is_refused(
    wrap: type[WindowedScorer | UncutScorer], inner: Scorer
) -> None:
    with pytest.raises(InvalidInputError, match="cannot say how many tokens"):
        wrap(inner)


@pytest.mark.parametrize("overlap", [-1, 1.5, True, None])
def test_an_overlap_that_is_none_is_refused(overlap: object) -> None:
    with pytest.raises(InvalidInputError, match="overlap is"):
        WindowedScorer(WordScorer(), overlap=overlap)  # type: ignore[arg-type]


def test_an_overlap_may_be_a_number_of_numpy() -> None:
    given = WindowedScorer(WordScorer(), overlap=np.int64(2))  # type: ignore[arg-type]
    plain = WindowedScorer(WordScorer(), overlap=2)
    assert (given.name, repr(given)[-10:]) == (plain.name, "overlap=2)")
    pairs = [("e", "a b c d e f g")]
    assert given.score(pairs).tolist() == plain.score(pairs).tolist()


def test_uncut_refuses_with_position_and_counts(reranker_base: Path) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu", max_length=48, query_max_length=20)
    uncut = UncutScorer(scorer)
    pairs = [(QUERY, "a bear"), (QUERY, "大熊猫吃竹子。")]
    assert uncut.score(pairs).tolist() == scorer.score(pairs).tolist()
    (length,) = scorer.measure([(QUERY, ENGLISH)])
    with pytest.raises(
        InvalidInputError,
        match=f"passage at position 1 has {length.passage} tokens, but .* {length.passage_limit} ",
    ) as refused:
        uncut.score([pairs[0], (QUERY, ENGLISH)])
    assert refused.value.index == 1
    assert "panda" not in str(refused.value)
    with pytest.raises(InvalidInputError, match=r"query of the pair at position 0 .* 20 are read"):
        uncut.score([(ENGLISH, "a bear")])


def test_a_pair_is_cut_exactly_where_it_does_not_fit(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "panda " * 40
    for count in range(1, 40):
        passage = words[: 6 * count].strip()
        loaded = load_scorer(str(model), device="cpu", max_length=32, query_max_length=16)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded.score([("what is a bear", passage)])
        (length,) = loaded.measure([("what is a bear", passage)])
        cut = any("were cut" in record.message for record in caplog.records)
        assert cut == (length.passage > length.passage_limit)
