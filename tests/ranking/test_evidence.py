"""Which sentence is chosen, what it costs, and that a failure never loses the ranking."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import (
    Evidence,
    InvalidInputError,
    Reranker,
    RerankResult,
    ScorerContractError,
    load_reranker,
)
from bge_rerank_integrations.base.deadline import seconds_left
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import RemoteUnavailable, ScoringTimeout
from bge_rerank_integrations.ranking.sentences import split_sentences
from bge_rerank_integrations.types import FloatArray, Pair, Scale
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from tests.fakes import WordOverlapScorer

BEST = "The red fox eats mice."
QUERY = "red fox eats"
PASSAGES = [
    "A dog barks. The cow moos.",
    "A hat is red. The red fox eats mice. It sleeps.",
    "The fox lives here. A fox is red.",
    "Nothing.",
]


class FailsOnSentences(WordOverlapScorer):
    """Scores its first call; the second fails after `scored` pairs, as a server that goes away."""

    def __init__(self, *, scored: int | None = None) -> None:
        super().__init__("goes-away")
        self.scored = scored

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        raw = super().score(pairs)
        if self.calls == 1:
            return raw
        if self.scored is None:
            raise RemoteUnavailable("the server is down")
        raw[self.scored :] = np.nan
        raise RemoteUnavailable("the server is down", partial=raw)


def explained(passages: Sequence[str] = PASSAGES, **options: Any) -> list[RerankResult]:
    scorer = options.pop("scorer", None) or WordOverlapScorer()
    return Reranker(scorer, explain=True, **options).rerank(QUERY, passages)


def quoted(results: Sequence[RerankResult], texts: Sequence[str] = PASSAGES) -> list[str | None]:
    return [
        None
        if result.evidence is None
        else texts[result.index][result.evidence.start : result.evidence.end]
        for result in results
    ]


def test_the_sentence_with_the_highest_score_and_the_first_of_equal_ones() -> None:
    results = explained()
    assert [result.index for result in results] == [1, 2, 0, 3]
    assert quoted(results) == [
        "The red fox eats mice.",
        "A fox is red.",
        "A dog barks.",
        "Nothing.",
    ]
    assert [result.evidence and result.evidence.raw_score for result in results] == [3, 2, 0, 0]
    assert results[0].evidence == Evidence(14, 36, results[0].score, 3.0, BEST)
    assert round(results[0].score, 6) == 0.952574  # the sigmoid of 3


def test_scores_are_shown_as_those_of_passages_are() -> None:
    (result, *_) = explained(normalize=False)
    assert result.evidence == Evidence(14, 36, 3.0, 3.0, BEST)


def test_everything_but_the_evidence_is_as_without_it() -> None:
    options: list[dict[str, Any]] = [{}, {"top_n": 2}, {"score_threshold": 0.6}]
    for one in options:
        plain = Reranker(WordOverlapScorer(), **one).rerank(QUERY, PASSAGES)
        assert [result.evidence for result in plain] == [None] * len(plain)
        assert [(r.index, r.score, r.raw_score, r.scored) for r in explained(**one)] == [
            (r.index, r.score, r.raw_score, r.scored) for r in plain
        ]


def test_only_sentences_of_what_is_kept_are_scored_in_one_call_each_once() -> None:
    scorer = WordOverlapScorer()
    texts = [*PASSAGES, "The red fox eats mice. A fox."]
    results = explained(texts, scorer=scorer, top_n=2)
    assert [result.index for result in results] == [1, 4]
    passages, sentences = scorer.asked
    assert [passage for _, passage in passages] == texts
    assert [passage for _, passage in sentences] == [
        "A hat is red.",
        "The red fox eats mice.",
        "It sleeps.",
        "A fox.",
    ]
    assert {query for query, _ in sentences} == {QUERY}


def test_a_passage_of_one_sentence_costs_nothing() -> None:
    scorer = WordOverlapScorer()
    results = explained(["A red fox.", "Fox"], scorer=scorer)
    assert quoted(results, ["A red fox.", "Fox"]) == ["A red fox.", "Fox"]
    assert len(scorer.asked) == 1
    for result in results:
        assert result.evidence is not None
        assert (result.evidence.score, result.evidence.raw_score) == (
            result.score,
            result.raw_score,
        )


def test_what_holds_no_letter_is_no_evidence() -> None:
    scorer = WordOverlapScorer()
    texts = ["***\n\nA red fox.\n\n---", "...", ""]
    assert quoted(explained(texts, scorer=scorer), texts) == ["A red fox.", None, None]
    assert scorer.asked[1:] == [[(QUERY, "A red fox.")]]


def test_the_text_to_look_in_can_be_another_than_the_passage() -> None:
    reranker = Reranker(WordOverlapScorer(), explain=True)
    titled = ["red fox eats\n\nA hat. A fox.", "title\n\nA cow."]
    bodies = ["A hat. A fox.", ""]
    results = reranker.rerank(QUERY, titled, evidence_texts=bodies)
    assert [result.index for result in results] == [0, 1]
    assert quoted(results, bodies) == ["A fox.", None]
    assert results[0].raw_score == 3
    again = asyncio.run(reranker.arerank(QUERY, titled, evidence_texts=bodies))
    assert repr(again) == repr(results)  # a score is NaN


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["one"], "1 evidence texts for 2 passages"),
        ("ab", "evidence texts is one str"),
        (["a", 7], "evidence text at position 1"),
    ],
)
def test_other_texts_must_be_texts_one_for_each(texts: Any, said: str) -> None:
    reranker = Reranker(WordOverlapScorer(), explain=True)
    with pytest.raises(InvalidInputError, match=said):
        reranker.rerank(QUERY, ["a", "b"], evidence_texts=texts)


@pytest.mark.parametrize(
    "opening",
    ["\ud83d\ude00" * 8, "\ud83d" * 3, "\U0001f600\ud83d\ude00\ude00", "\U0001f600"],
    ids=["halves", "lone", "mixed", "whole"],
)
def test_offsets_point_into_the_text_as_the_caller_has_it(opening: str) -> None:
    passage = opening + " Otters swim. The red fox eats mice. Gold fell."
    reranker = Reranker(WordOverlapScorer(), explain=True)
    for texts in (None, [passage]):
        found = reranker.rerank(QUERY, [passage], evidence_texts=texts)[0].evidence
        assert found is not None
        assert passage[found.start : found.end] == "The red fox eats mice."


WORDS = st.sampled_from(
    ["red", "fox", "eats", "cow", "Red", "熊猫", ".", "!", "。", "\n", " ", "* "]
)
TEXTS = st.lists(st.lists(WORDS, max_size=20).map(" ".join), min_size=1, max_size=5)


@settings(deadline=None)
@given(TEXTS)
def test_the_offsets_point_to_a_sentence_that_no_other_beats(texts: list[str]) -> None:
    scorer = WordOverlapScorer()
    for result in explained(texts, scorer=scorer):
        text = texts[result.index]
        spans = [
            span for span in split_sentences(text) if any(c.isalnum() for c in text[slice(*span)])
        ]
        if not spans:
            assert result.evidence is None
            continue
        raw = scorer.score([(QUERY, text[slice(*span)]) for span in spans])
        best = result.evidence
        assert best is not None
        assert (best.start, best.end) == spans[int(raw.argmax())]
        assert best.raw_score == raw.max()


def test_a_failure_while_explaining_keeps_the_ranking(caplog: pytest.LogCaptureFixture) -> None:
    traces: list[RerankTrace] = []
    results = explained(scorer=FailsOnSentences(), on_error="keep", on_trace=traces.append)
    plain = Reranker(WordOverlapScorer()).rerank(QUERY, PASSAGES)
    assert results[:3] == plain[:3]
    assert quoted(results) == [None, None, None, "Nothing."], "that was scored as a passage"
    (trace,) = traces
    assert (trace.failure, trace.evidence_failure) == (None, "RemoteUnavailable")
    assert trace.as_dict()["evidence_failure"] == "RemoteUnavailable"
    assert [passage.after for passage in trace.passages] == [2, 0, 1, 3]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 of 4 passages are left without evidence: RemoteUnavailable" in record.getMessage()
    assert "fox" not in record.getMessage()


def test_evidence_needs_every_sentence_of_its_passage() -> None:
    # the seven sentences to score are those of passages 1, 2 and 0, in this order
    scored = {0: [False] * 3, 3: [True, False, False], 4: [True, False, False]}
    scored |= {5: [True, True, False], 6: [True, True, False], 7: [True, True, True]}
    for number, there in scored.items():
        results = explained(scorer=FailsOnSentences(scored=number), on_error="keep")
        assert [result.evidence is not None for result in results] == [*there, True]
        assert [result.scored for result in results] == [True] * 4


def test_a_failure_while_explaining_raises_with_the_scores_of_the_passages() -> None:
    with pytest.raises(RemoteUnavailable) as raised:
        explained(scorer=FailsOnSentences(scored=2))
    assert raised.value.partial is not None
    assert raised.value.partial.tolist() == [0, 3, 2, 0]
    (note,) = raised.value.__notes__
    assert "sentences for explain" in note


def test_what_failed_is_not_asked_again() -> None:
    class Down(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            super().score(pairs)
            raise RemoteUnavailable("the server is down")

    scorer = Down()
    traces: list[RerankTrace] = []
    results = explained(scorer=scorer, on_error="keep", on_trace=traces.append)
    assert [result.evidence for result in results] == [None] * 4
    assert scorer.calls == 1
    assert (traces[0].failure, traces[0].evidence_failure) == ("RemoteUnavailable", None)


def test_ranking_and_explaining_share_one_time_limit() -> None:
    class Slow(WordOverlapScorer):
        """Uses the whole time of its first call; none is left for sentences."""

        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            raw = super().score(pairs)
            left = seconds_left()
            assert left is not None
            end = time.monotonic() + left
            while time.monotonic() <= end:
                continue
            return raw

    scorer = Slow()
    results = explained(scorer=scorer, timeout=0.05, on_error="keep")
    assert [result.index for result in results] == [1, 2, 0, 3]
    assert quoted(results)[:3] == [None] * 3
    assert scorer.calls == 1
    with pytest.raises(ScoringTimeout, match="divided into sentences"):
        explained(scorer=Slow(), timeout=0.05)


def test_a_scorer_that_breaks_its_contract_is_found_out_here_too() -> None:
    class Short(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            raw = super().score(pairs)
            return raw if self.calls == 1 else raw[1:]

    with pytest.raises(ScorerContractError, match="shape"):
        explained(scorer=Short())


def test_the_trace_counts_sentences_and_their_time() -> None:
    traces: list[RerankTrace] = []
    explained(on_trace=traces.append, top_n=2)
    explained(["One.", "Two."], on_trace=traces.append)
    Reranker(WordOverlapScorer(), on_trace=traces.append).rerank(QUERY, PASSAGES)
    assert [trace.counts.get("sentences") for trace in traces] == [5, 0, None]
    for trace in traces[:2]:
        assert 0 < trace.seconds["explaining"] <= trace.seconds["total"]
    assert "explaining" not in traces[2].seconds


def test_a_cache_remembers_sentences() -> None:
    inner = WordOverlapScorer()
    scorer = CachedScorer(inner, MemoryStore())
    assert explained(scorer=scorer) == explained(scorer=scorer) == explained()
    assert len(inner.asked) == 2


@pytest.mark.parametrize("scale", ["cosine", "probability"])
def test_other_scales_are_shown_as_they_are(scale: Scale) -> None:
    class Share(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            return np.asarray(super().score(pairs) / 8, dtype=np.float32)

    scorer = Share()
    scorer.scale = scale
    (result, *_) = explained(scorer=scorer)
    assert result.evidence == Evidence(14, 36, 0.375, 0.375, BEST)


ENGLISH = (
    "Berlin is the capital of Germany. Berlin had 3,520,031 inhabitants in 2016. "
    "The Spree flows through Berlin. Dr. Koch worked there."
)


def test_a_real_model_finds_the_sentence_that_answers() -> None:
    reranker = load_reranker("offline", explain=True, top_n=1)
    passages = ["New York has many museums. The Met is one.", ENGLISH]
    for query, answer in [
        ("How many people live in Berlin?", "3,520,031"),
        ("Which river flows through Berlin?", "Spree"),
        ("Where did Koch work?", "Dr. Koch"),
    ]:
        (result,) = reranker.rerank(query, passages)
        assert answer in str(quoted([result], passages)[0])
        assert result.evidence is not None
        alone = reranker.rerank(query, [passages[1][result.evidence.start : result.evidence.end]])
        assert alone[0].raw_score == pytest.approx(result.evidence.raw_score, abs=1e-5)


def test_a_window_or_an_embedder_explains_as_well() -> None:
    filler = "The weather was mild and the market was closed. " * 60
    passages = [filler + ENGLISH, filler]
    for model, options in [
        ("offline", {"long_passages": "windows"}),
        ("offline", {"max_length": 64}),
        ("offline-embedder", {"long_passages": "windows"}),
    ]:
        reranker = load_reranker(model, explain=True, top_n=1, **options)  # type: ignore[arg-type]
        results = reranker.rerank("How many people live in Berlin?", passages[:1])
        assert "3,520,031" in str(quoted(results, passages)[0])
