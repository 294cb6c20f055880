"""`BGECrossEncoder`: scores of pairs, and the model inside a `CrossEncoderReranker`."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_classic.retrievers.document_compressors.cross_encoder import BaseCrossEncoder
from pydantic import ValidationError

from bge_rerank_integrations import InvalidInputError, NonFiniteScoreError, ScorerContractError
from bge_rerank_integrations.langchain import BGECrossEncoder
from tests.fakes import CosineScorer, NanScorer, ShortScorer, WordOverlapScorer
from tests.langchain.foxes import NO_SUCH_MODEL, QUERY, documents, positions, sigmoid

PAIRS = [(QUERY, "a fox"), ("lazy dog", "the lazy dog"), (QUERY, "nothing"), (QUERY, "a fox")]


def test_scores_are_sigmoids_in_the_order_of_the_pairs() -> None:
    scores = BGECrossEncoder(scorer=WordOverlapScorer()).score(PAIRS)
    assert scores == [sigmoid(1), sigmoid(2), 0.5, sigmoid(1)]
    assert {type(score) for score in scores} == {float}
    assert json.loads(json.dumps(scores)) == scores


def test_without_normalize_they_are_logits() -> None:
    encoder = BGECrossEncoder(scorer=WordOverlapScorer(), normalize=False)
    assert encoder.score(PAIRS) == [1.0, 2.0, 0.0, 1.0]


def test_pairs_of_several_queries_are_one_call() -> None:
    scorer = WordOverlapScorer()
    BGECrossEncoder(scorer=scorer).score(PAIRS)
    assert (scorer.calls, scorer.pairs_scored) == (1, 4)


def test_one_pair_gives_a_list_of_one() -> None:
    assert BGECrossEncoder(scorer=WordOverlapScorer()).score([PAIRS[2]]) == [0.5]


def test_no_pairs_need_no_model() -> None:
    assert BGECrossEncoder(model=NO_SUCH_MODEL).score([]) == []


def test_a_cosine_is_shown_as_it_is() -> None:
    assert BGECrossEncoder(scorer=CosineScorer()).score(PAIRS) == [0.25, 0.5, 0.0, 0.25]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b"), ("a", None)], "the passage at position 1 is NoneType"),
        ([("a", "b"), ("a", "b", "c")], "the item at position 1 is tuple"),
        ("ab", "pairs is one str"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused(pairs: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        BGECrossEncoder(model=NO_SUCH_MODEL).score(pairs)


def test_a_wrong_score_is_an_error() -> None:
    with pytest.raises(NonFiniteScoreError, match="gave nan for the pair at position 1"):
        BGECrossEncoder(scorer=NanScorer()).score(PAIRS)
    with pytest.raises(ScorerContractError, match=r"shape \(3,\) for 4 pairs"):
        BGECrossEncoder(scorer=ShortScorer()).score(PAIRS)


@pytest.mark.parametrize("normalize", [True, False])
async def test_inside_a_cross_encoder_reranker(normalize: bool) -> None:
    encoder = BGECrossEncoder(scorer=WordOverlapScorer(), normalize=normalize)
    assert isinstance(encoder, BaseCrossEncoder)
    reranker = CrossEncoderReranker(model=encoder, top_n=3)
    assert positions(list(reranker.compress_documents(documents(), QUERY))) == [1, 3, 2]
    assert positions(list(await reranker.acompress_documents(documents(), QUERY))) == [1, 3, 2]
    assert reranker.compress_documents([], QUERY) == []


def test_a_cross_encoder_reranker_refuses_what_only_looks_like_one() -> None:
    with pytest.raises(ValidationError, match="instance of BaseCrossEncoder"):
        CrossEncoderReranker(model=WordOverlapScorer())  # type: ignore[arg-type]


def test_a_cross_encoder_reranker_can_be_dumped_with_it() -> None:
    dumped = CrossEncoderReranker(model=BGECrossEncoder(max_length=256)).model_dump()
    assert dumped["model"]["max_length"] == 256


@pytest.mark.reference
@pytest.mark.parametrize("normalize", [True, False])
def test_gives_what_sentence_transformers_gives(
    reranker_base: Path,
    normalize: bool,
) -> None:
    # which is all that HuggingFaceCrossEncoder calls
    sentence_transformers = pytest.importorskip("sentence_transformers")
    torch = pytest.importorskip("torch")
    reference = sentence_transformers.CrossEncoder(str(reranker_base), device="cpu")
    activation = None if normalize else torch.nn.Identity()
    expected = reference.predict(PAIRS, activation_fn=activation, show_progress_bar=False)
    encoder = BGECrossEncoder(model=str(reranker_base), device="cpu", normalize=normalize)
    assert encoder.score(PAIRS) == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(encoder.score(PAIRS))) == 3
