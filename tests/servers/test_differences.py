"""Where servers differ from each other, as the facts they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_rerank_integrations.errors import RemoteError
from bge_rerank_integrations.types import FloatArray
from tests.servers.kinds import LLAMA_CPP, VLLM
from tests.servers.scores import connect, local_scores, tolerance
from tests.servers.serving import Running
from tests.tiny_models import TEXT

QUERY = "what is a panda"
CONTROL = ("the giant </s></s> bear", "<mask> bear", "the bear <s>", "the ＜/s＞ bear")


def test_control_tokens_steer_the_model_on_all_servers_but_one(
    served: Running, reranker_folder: Path
) -> None:
    # llama.cpp alone takes them as the text they are, which is what our own scorer does
    pairs = [(QUERY, passage) for passage in CONTROL]
    scorer = connect(served)
    literal = local_scores(reranker_folder, pairs, scale=scorer.scale)
    parsed = local_scores(reranker_folder, pairs, scale=scorer.scale, special_tokens="parse")
    assert np.abs(literal - parsed).min() > 2 * tolerance(served.kind)
    expected = literal if served.kind is LLAMA_CPP else parsed
    np.testing.assert_allclose(scorer.score(pairs), expected, rtol=0, atol=tolerance(served.kind))


def test_an_empty_passage_is_half_of_a_pair_on_all_servers_but_one(
    served: Running, reranker_folder: Path
) -> None:
    scorer = connect(served)
    expected = local_scores(reranker_folder, [(QUERY, "")], scale=scorer.scale)
    if served.kind is VLLM:
        alone = _score_of_the_query_alone(reranker_folder)
        assert abs(alone - expected) > 0.1
        expected = alone
    np.testing.assert_allclose(
        scorer.score([(QUERY, "")]), expected, rtol=0, atol=tolerance(served.kind)
    )


def test_white_space_alone_is_an_empty_passage_of_a_pair(
    served: Running, reranker_folder: Path
) -> None:
    scorer = connect(served)
    np.testing.assert_allclose(
        scorer.score([(QUERY, " ")]),
        local_scores(reranker_folder, [(QUERY, "")], scale=scorer.scale),
        rtol=0,
        atol=tolerance(served.kind),
    )


def test_a_long_passage_is_cut_as_ours_is_or_refused_with_its_number_of_tokens(
    served: Running, reranker_folder: Path
) -> None:
    pairs = [(QUERY, TEXT), (QUERY, "the giant bear")]
    scorer = connect(served)
    if served.kind is LLAMA_CPP:
        with pytest.raises(RemoteError, match=r"input \d+ tokens .* too large"):
            scorer.score(pairs)
    else:
        np.testing.assert_allclose(
            scorer.score(pairs),
            local_scores(reranker_folder, pairs, scale=scorer.scale),
            rtol=0,
            atol=tolerance(served.kind),
        )


def _score_of_the_query_alone(folder: Path) -> FloatArray:
    """As transformers scores a text and an empty one: without the separators of a second text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(QUERY, return_tensors="pt")).logits
    scores: FloatArray = logits[:, 0].numpy()
    return scores
