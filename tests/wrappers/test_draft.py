"""`draft`: the results of float32, of which only those near the best are computed in it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from bge_rerank_integrations import InvalidInputError, Reranker, RerankResult, load_reranker
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.langchain import BGERerank
from bge_rerank_integrations.types import FloatArray, Pair, Scale
from bge_rerank_integrations.wrappers.draft import SAMPLE, DraftedScorer
from tests.fakes import FailingScorer, plain_calibration


class NumberScorer:
    """Scores a passage by the number that it is, less an error of its own."""

    name = "number"
    scale: Scale = "logit"

    def __init__(self, errors: Sequence[float] = ()) -> None:
        self.errors = errors
        self.scored: list[str] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        passages = [passage for _, passage in pairs]
        self.scored += passages
        errors = self.errors or [0.0] * len(passages)
        return np.array([float(p) - e for p, e in zip(passages, errors, strict=True)], np.float32)


def ranked(
    passages: list[str], errors: Sequence[float], **options: Any
) -> tuple[list[RerankResult], list[str], RerankTrace]:
    """The results with a draft, the passages that were scored twice, and the trace."""
    exact, traces = NumberScorer(), list[RerankTrace]()
    scorer = DraftedScorer(exact, NumberScorer(errors))
    results = Reranker(scorer, on_trace=traces.append, **options).rerank("q", passages)
    return results, exact.scored, traces[0]


def test_only_what_can_be_a_result_is_scored_twice() -> None:
    passages = [str(number) for number in range(100)]
    results, twice, trace = ranked(passages, [0.25] * 100, top_n=5)
    assert [result.raw_score for result in results] == [99, 98, 97, 96, 95]
    assert twice == [str(number) for number in range(99, 99 - SAMPLE, -1)]
    assert trace.counts["rescored"] == SAMPLE
    assert trace.passages[0].raw_score == -0.25


def test_the_margin_widens_until_nothing_can_be_among_the_results() -> None:
    first = ["10", "9", "8.9", "8.8", "8.7", "8.6", "8.5"]
    passages = [*first, "7", "6", "5.9", "9.5", "1"]
    errors = [0.1] * 7 + [0.6, 0, 0, 2.5, 0]  # 9.5 is drafted as 7, behind seven others
    results, twice, trace = ranked(passages, errors, top_n=2)
    assert [result.raw_score for result in results] == [10, 9.5]
    assert twice[:SAMPLE] == [*first, "9.5"]
    assert trace.counts["rescored"] == len(twice)
    assert twice[SAMPLE:] == ["7", "6", "5.9"]  # within 5 of 9.5; 1 is not


def test_a_threshold_decides_as_well() -> None:
    passages = [str(number) for number in range(-20, 20)]
    results, twice, _ = ranked(passages, [0.25] * 40, score_threshold=0.5)
    assert [result.raw_score for result in results] == [*range(19, -1, -1)]
    assert sorted(map(int, twice)) == [*range(20)]  # -1 was drafted as -1.25, and 0.5 more is < 0
    results, twice, _ = ranked(passages, [0.25] * 40, score_threshold=0.5, top_n=3)
    assert (len(results), len(twice)) == (3, SAMPLE)


@given(
    numbers=st.lists(st.integers(-30, 30), min_size=1, max_size=40),
    error=st.sampled_from([0.0, 0.25, 1.0, 8.0]),
    top_n=st.none() | st.integers(1, 12),
    threshold=st.none() | st.sampled_from([0.01, 0.5, 0.9]),
    data=st.data(),
)
def test_results_are_those_without_a_draft(
    numbers: list[int],
    error: float,
    top_n: int | None,
    threshold: float | None,
    data: st.DataObject,
) -> None:
    signs = data.draw(
        st.lists(st.sampled_from([-1, 1]), min_size=len(numbers), max_size=len(numbers))
    )
    options: dict[str, Any] = {"top_n": top_n, "score_threshold": threshold}
    passages = [str(number) for number in numbers]
    results, _, _ = ranked(passages, [sign * error for sign in signs], **options)
    assert results == Reranker(NumberScorer(), **options).rerank("q", passages)


def test_errors_like_those_of_a_trained_model_change_no_result() -> None:
    # as benchmarks/draft.py found: logits spread by 0.5, errors are 0.0007 (median) to 0.021
    chance = np.random.default_rng(0)
    same = twice = 0
    for _ in range(1000):
        logits = [float(x) for x in chance.normal(0, 0.5, 100).astype(np.float32)]
        errors = (0.001 * chance.standard_t(3, 100)).tolist()
        results, scored, _ = ranked([repr(x) for x in logits], errors, top_n=5)
        same += [result.raw_score for result in results] == sorted(logits, reverse=True)[:5]
        twice += len(scored)
    assert same >= 999
    assert twice < 10_000, "of 100,000"


def test_evidence_and_plain_scores_are_exact() -> None:
    scorer = DraftedScorer(NumberScorer(), NumberScorer([0.5, 0.5]))
    assert scorer.score([("q", "1"), ("q", "2")]).tolist() == [1, 2]
    assert (scorer.name, scorer.scale) == ("number", "logit")
    results = Reranker(scorer, top_n=1, explain=True).rerank("q", ["1", "2"])
    assert results[0].evidence is not None
    assert results[0].evidence.raw_score == 2


def test_a_failure_holds_exact_scores_alone() -> None:
    for scorer in (
        DraftedScorer(NumberScorer(), FailingScorer(scored=2)),
        DraftedScorer(FailingScorer(), NumberScorer()),
    ):
        with pytest.raises(ScoringTimeout) as failed:
            Reranker(scorer, top_n=1).rerank("q", ["1", "2", "3"])
        assert failed.value.partial is not None
        assert np.isnan(failed.value.partial).all()
        kept = Reranker(scorer, top_n=1, on_error="keep").rerank("q", ["1", "2", "3"])
        assert [(result.index, result.scored) for result in kept] == [(0, False)]


def test_what_looks_at_every_score_is_refused() -> None:
    scorer = DraftedScorer(NumberScorer(), NumberScorer())
    refused: list[dict[str, Any]] = [
        {"min_n": 2},
        {"calibration": replace(plain_calibration(), scorer="number")},
    ]
    for options in refused:
        with pytest.raises(InvalidInputError, match="leave draft out"):
            Reranker(scorer, **options)
    with pytest.raises(InvalidInputError, match="precision is 'bf16', but with a draft"):
        load_reranker("offline", draft="bf16", precision="bf16")
    with pytest.raises(InvalidInputError, match="draft is for models that run in this process"):
        load_reranker("m", draft="bf16", base_url="http://localhost:1")


SENTENCE = "the panda bear eats bamboo of china and sleeps on a mountain by the river, a red fox"


@pytest.mark.parametrize("model", ["reranker_base", "bert_reranker", "reranker_m3"])
def test_a_model_gives_the_results_of_float32(model: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    words = SENTENCE.split()
    chance = np.random.default_rng(1)
    traces: list[RerankTrace] = []
    exact = load_reranker(str(folder), device="cpu", precision="fp32", top_n=3)
    drafted = load_reranker(
        str(folder), device="cpu", draft="bf16", top_n=3, on_trace=traces.append
    )
    for _ in range(10):
        query = " ".join(chance.choice(words, 4))
        passages = [" ".join(chance.choice(words, chance.integers(3, 30))) for _ in range(60)]
        wanted, found = exact.rerank(query, passages), drafted.rerank(query, passages)
        assert [result.index for result in found] == [result.index for result in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert math.isclose(one.raw_score, other.raw_score, abs_tol=1e-5)
    assert sum(trace.counts["rescored"] for trace in traces) < 400, "of 600"
    documents = [Document(page_content=passage) for passage in passages]
    adapter = BGERerank(model=str(folder), device="cpu", draft="bf16", top_n=3)
    kept = adapter.compress_documents(documents, query)
    assert [one.page_content for one in kept] == [passages[result.index] for result in wanted]
