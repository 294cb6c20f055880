"""Our scorers inside mteb on a task of local data, against sentence-transformers there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset  # type: ignore[import-untyped]
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import CrossEncoder

from bge_rerank_integrations import (
    InvalidInputError,
    NonFiniteScoreError,
    Reranker,
    Scorer,
    load_scorer,
)
from bge_rerank_integrations.mteb import MTEBReranker
from tests.fakes import StatedScorer, WordOverlapScorer

PASSAGES = {
    "d0": ("Panda", "It is a black and white bear."),
    "d1": ("", "Water boils at 100 degrees."),
    "d2": ("Ships", "A ship of steel floats."),
    "d3": ("", "Paris is the capital of France."),
    "d4": ("", "Who wrote the first program?"),
    "d5": ("Heart", "It moves blood."),
    "d6": ("", "Many people live in Berlin."),
    "d7": ("", "大熊猫吃竹子。"),
}
QUESTIONS = {
    "q0": ("what is a panda?", ["d0", "d7"]),
    "q1": ("why do ships float", ["d2"]),
    "q2": ("capital of France", ["d3"]),
    "q3": ("how many people live in Berlin?", ["d6"]),
}


class LocalReranking(AbsTaskRetrieval):
    """Each question with all the passages, in their order."""

    metadata = TaskMetadata(
        name="LocalReranking",
        description="A task of local data.",
        type="Reranking",
        category="t2t",
        main_score="map_at_1000",
        dataset={"path": "local/none", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=["text"],
    )

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        self.dataset = {
            "default": {
                "test": {
                    "queries": Dataset.from_list(
                        [{"id": key, "text": text} for key, (text, _) in QUESTIONS.items()]
                    ),
                    "corpus": Dataset.from_list(
                        [
                            {"id": key, "title": title, "text": text}
                            for key, (title, text) in PASSAGES.items()
                        ]
                    ),
                    "relevant_docs": {
                        key: dict.fromkeys(good, 1) for key, (_, good) in QUESTIONS.items()
                    },
                    "top_ranked": {key: list(PASSAGES) for key in QUESTIONS},
                }
            }
        }
        self.data_loaded = True


def scores_of(model: Any) -> dict[str, float]:
    """Every number that mteb reports of the task."""
    (result,) = mteb.evaluate(
        model, [LocalReranking()], cache=None, co2_tracker=False, show_progress_bar=False
    ).task_results
    (scores,) = result.scores["test"]
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def test_words_in_common_score_as_they_do_by_hand() -> None:
    scorer = WordOverlapScorer()
    found = scores_of(MTEBReranker(scorer))
    assert scorer.pairs_scored == len(QUESTIONS) * len(PASSAGES)
    pairs = [
        (question, f"{title} {text}".strip())
        for question, _ in QUESTIONS.values()
        for title, text in PASSAGES.values()
    ]
    rows = WordOverlapScorer().score(pairs).reshape(len(QUESTIONS), len(PASSAGES))
    for row, (_, good) in zip(rows, QUESTIONS.values(), strict=True):
        best = {f"d{place}" for place in np.flatnonzero(row == row.max())}
        assert best <= set(good), "each best one is an answer, and no tie decides a first place"
    assert found["mrr_at_1"] == 1
    assert found["hit_rate_at_1"] == 1
    # q0 has two answers, one of them in Chinese, which shares no word
    assert found["recall_at_1"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)


@pytest.mark.reference
@pytest.mark.parametrize("model", ["reranker_base", "bert_reranker"])
def test_mteb_says_of_ours_what_it_says_of_sentence_transformers(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    theirs = scores_of(CrossEncoder(str(folder), device="cpu", max_length=512))
    ours = scores_of(MTEBReranker(load_scorer(str(folder), device="cpu", precision="fp32")))
    assert ours.keys() == theirs.keys()
    assert {"map_at_1000", "ndcg_at_10", "mrr_at_10"} <= ours.keys()
    for name, value in theirs.items():
        # the nauc_ figures weigh orders by the scores, which are ours without a sigmoid
        if not name.startswith("nauc"):
            assert ours[name] == pytest.approx(value, abs=1e-5), name
    assert ours["map_at_1000"] < 1, "a perfect or empty result would show nothing"


def test_what_mteb_files_results_under_changes_with_the_scores(reranker_base: Path) -> None:
    one = load_scorer(str(reranker_base), device="cpu", max_length=64)
    other = load_scorer(str(reranker_base), device="cpu", max_length=128)
    again = load_scorer(str(reranker_base), device="cpu", max_length=64)
    metas = [MTEBReranker(scorer).mteb_model_meta for scorer in (one, other, again)]
    assert len({meta.name for meta in metas}) == 1
    assert metas[0].revision == metas[2].revision != metas[1].revision
    assert str(metas[0].name).startswith("local/")
    assert metas[0].is_cross_encoder


def test_names() -> None:
    def name(scorer: str, given: str | None = None) -> str | None:
        found: str | None = MTEBReranker(StatedScorer(name=scorer), name=given).mteb_model_meta.name
        return found

    assert name("BAAI/bge-reranker-base#12ab[fp32]") == "BAAI/bge-reranker-base"
    assert name("/mine/#12ab[fp32]") == "local/mine"
    assert name("/a/b/mine#12ab") == "local/mine"
    assert name("words") == "local/words"
    assert name("words", "me/mine") == "me/mine"
    for wrong in ("mine", "a/b/c", "/mine", ""):
        with pytest.raises(InvalidInputError, match="mteb requires 'organization/model'"):
            name("words", wrong)


def test_cached_results_are_asked_for_by_the_whole_name(tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path)
    options: Mapping[str, Any] = {"cache": cache, "co2_tracker": False, "show_progress_bar": False}
    calls = []
    for scorer in (WordOverlapScorer("a"), WordOverlapScorer("a"), WordOverlapScorer("a#2")):
        mteb.evaluate(MTEBReranker(scorer), [LocalReranking()], **options)
        calls.append(scorer.calls)
    assert calls == [1, 0, 1]


def predict(scorer: Scorer, queries: Sequence[Any], documents: Sequence[Any]) -> Any:
    return MTEBReranker(scorer).predict(
        queries, documents, task_metadata=None, hf_split="test", hf_subset="default", batch_size=1
    )


def test_pairs_come_in_batches_and_go_back_in_their_order() -> None:
    found = predict(
        StatedScorer(),
        [{"text": ["q", "q"]}, {"text": ["q"]}],
        [{"text": ["a 2", "b 1"]}, {"text": ["c 3"]}],
    )
    assert (found.dtype, found.tolist()) == (np.float32, [2, 1, 3])
    assert predict(StatedScorer(), [], []).tolist() == []


def test_what_cannot_be_right_is_an_error() -> None:
    batch = [{"text": ["a 1"]}]
    with pytest.raises(InvalidInputError, match="gave 1 queries for 2 documents"):
        predict(StatedScorer(), batch, batch * 2)
    with pytest.raises(InvalidInputError, match=r"inputs of \['image'\] and no text"):
        predict(StatedScorer(), batch, [{"image": ["?"]}])
    with pytest.raises(NonFiniteScoreError):
        predict(StatedScorer(), batch, [{"text": [f"a {math.nan}"]}])


@pytest.mark.parametrize("wrong", [Reranker(WordOverlapScorer()), "BAAI/bge-reranker-v2-m3", None])
def test_what_is_no_scorer_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"scorer is a {type(wrong).__name__}; it must"):
        MTEBReranker(wrong)
