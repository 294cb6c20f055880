"""Many long texts are tokenized and computed part by part, and give the same scores."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.errors import ScoringTimeout
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.options import PairOptions
from tests.local.oracle import OracleForward
from tests.local.text.test_input_ids import bi_scorer, cross_scorer

# two of them are a part: together they have fewer than two million characters
PAIRS = [("q", f"{number} panda " + "bear " * 180_000) for number in range(5)]


def test_the_parts_give_the_scores_of_each_pair_alone(reranker_base: Path) -> None:
    scorer = cross_scorer(reranker_base, OracleForward())
    assert [part.stop for part in scorer._parts(PAIRS)] == [2, 4, 5]
    scores = scorer.score_layers(PAIRS)
    assert len(set(scores[:, 0].tolist())) == len(PAIRS)
    assert scores.tolist() == [scorer.score_layers([pair])[0].tolist() for pair in PAIRS]


def test_parts_are_smaller_under_a_time_limit_and_with_a_progress_bar(reranker_base: Path) -> None:
    scorer = cross_scorer(reranker_base, OracleForward())
    with time_limit(1000):
        assert [part.stop for part in scorer._parts(PAIRS)] == [1, 2, 3, 4, 5]
    scorer._show_progress = True
    assert [part.stop for part in scorer._parts(PAIRS)] == [1, 2, 3, 4, 5]


def test_at_a_time_limit_the_earlier_parts_have_scores(reranker_base: Path) -> None:
    with ExitStack() as over:

        class TimeIsOverAfterTheFirstPart(OracleForward):
            def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> np.ndarray:
                rows = super().run(batch, exact=exact)
                if sum(self.batches) == 2:
                    over.enter_context(time_limit(0))
                return rows

        scorer = cross_scorer(reranker_base, TimeIsOverAfterTheFirstPart())
        with pytest.raises(ScoringTimeout, match="with 3 of 5 pairs unscored") as raised:
            scorer._score(PAIRS)  # on this thread, whose limit the forward sets
    whole = cross_scorer(reranker_base, OracleForward()).score(PAIRS)
    partial = raised.value.partial
    assert partial is not None
    assert partial[:2].tolist() == whole[:2].tolist()
    assert np.isnan(partial[2:]).all()


def test_an_embedder_reads_each_text_once(bert_reranker: Path) -> None:
    forward = OracleForward()
    scorer = bi_scorer(bert_reranker, forward, PairOptions())
    scorer.score([(query, passage) for query in ("q", "p") for _, passage in PAIRS])
    assert sum(forward.batches) == len(PAIRS) + 2


def test_an_embedder_reads_the_passages_of_one_query_part_by_part(bert_reranker: Path) -> None:
    forward = OracleForward()
    scorer = bi_scorer(bert_reranker, forward, PairOptions())
    scores = scorer.score(PAIRS)
    assert sum(forward.batches) == len(PAIRS) + 3, "the query once for each part"
    whole = bi_scorer(bert_reranker, OracleForward(), PairOptions())
    assert scores.tolist() == [whole.score([pair])[0] for pair in PAIRS]
