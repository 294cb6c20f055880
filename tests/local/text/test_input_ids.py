"""What reaches the model, seen from inside it: template, text, template; and whose fault it is."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_rerank_integrations import InvalidInputError, NonFiniteScoreError, OutOfMemoryError
from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.local.st_config import FolderSettings
from bge_rerank_integrations.local.text.bi_encoder import bi_encoding
from bge_rerank_integrations.local.text.cross_encoder import Method, cross_encoding
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.options import PairOptions
from bge_rerank_integrations.types import FloatArray
from tests.local.oracle import NO_LIMITS, DeviceFull, OracleForward, engine_over
from tests.local.text.test_tokens import texts

pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


def cross_scorer(
    folder: Path,
    forward: OracleForward,
    text: PairOptions = PairOptions(),  # noqa: B008
) -> LocalScorer:
    engine = engine_over(forward, folder)
    return _scorer(engine, cross_encoding(engine.tokenizer, text, limit=512))


def bi_scorer(folder: Path, forward: OracleForward, text: PairOptions) -> LocalScorer:
    engine = engine_over(forward, folder)
    settings = FolderSettings(Family.BI_ENCODER, "cls")
    method = bi_encoding(engine.tokenizer, text, settings, limit=512)
    return _scorer(engine, method)


def _scorer(engine: Engine, method: Method) -> LocalScorer:
    return LocalScorer(engine, method, limits=NO_LIMITS, show_progress=False)


@given(pairs=pairs, length=st.sampled_from([20, 21, 40, 512]))
@settings(max_examples=300)
def test_control_ids_stand_only_where_the_template_puts_them(
    reranker_base: Path, bert_reranker: Path, pairs: list[tuple[str, str]], length: int
) -> None:
    for folder, first, between, last in (
        (reranker_base, 0, [2, 2], 2),
        (bert_reranker, 2, [3], 3),
    ):
        forward = OracleForward()
        scorer = cross_scorer(folder, forward, PairOptions(max_length=length))
        scorer.score(pairs)
        control = scorer._loaded().tokenizer.control_ids
        for ids in forward.finished:
            assert len(ids) <= length
            found = [(place, number) for place, number in enumerate(ids) if number in control]
            assert [number for _, number in found] == [first, *between, last]
            assert found[0][0] == 0
            assert found[-1][0] == len(ids) - 1
            assert found[-2][0] - found[1][0] == len(between) - 1


@given(pairs=pairs, length=st.sampled_from([3, 12, 512]))
@settings(max_examples=150)
def test_an_embedder_sees_one_text_between_two_control_ids(
    bge_embedder: Path, m3_embedder: Path, pairs: list[tuple[str, str]], length: int
) -> None:
    for folder, first, last in ((bge_embedder, 2, 3), (m3_embedder, 0, 2)):
        forward = OracleForward()
        text = PairOptions(max_length=length, query_instruction="find: ")
        scorer = bi_scorer(folder, forward, text)
        scorer.score(pairs)
        control = scorer._loaded().tokenizer.control_ids
        for ids in forward.finished:
            assert len(ids) <= length
            assert (ids[0], ids[-1]) == (first, last)
            assert control.isdisjoint(ids[1:-1])


def test_each_distinct_pair_reaches_the_model_once(reranker_base: Path) -> None:
    forward = OracleForward()
    scorer = cross_scorer(reranker_base, forward)
    scorer.score([("a", "panda"), ("a", "bear"), ("a", "panda"), ("bear", "a"), ("a", "bear")])
    assert forward.finished.total() == 3


def test_each_distinct_text_reaches_an_embedder_once(bge_embedder: Path) -> None:
    forward = OracleForward()
    scorer = bi_scorer(bge_embedder, forward, PairOptions(query_instruction=""))
    scorer.score([("a", "panda"), ("a", "bear"), ("panda", "a"), ("a", "a"), ("bear", "panda")])
    assert forward.finished.total() == 3


REPEATED = [("a", "x"), ("a", "x"), ("a", "panda bear"), ("a", "x"), ("a", "{}"), ("a", "{}")]
"""The pair with a place for a fault is the third distinct one and comes fourth and fifth."""


def with_fault(text: str) -> list[tuple[str, str]]:
    return [(query, passage.format(text)) for query, passage in REPEATED]


def test_a_control_token_is_reported_at_the_first_place_the_caller_gave_it(
    reranker_base: Path,
) -> None:
    scorer = cross_scorer(reranker_base, OracleForward(), PairOptions(special_tokens="error"))
    with pytest.raises(InvalidInputError, match=r"pair at position 4 holds.*'</s>'") as refused:
        scorer.score(with_fault("secret ＜/s＞ text"))
    assert refused.value.index == 4
    assert "secret" not in str(refused.value)
    with pytest.raises(InvalidInputError, match="position 1 ") as refused:
        scorer.score([("a", "b"), ("a <mask>", "b")])
    assert refused.value.index == 1


def test_a_score_that_is_nan_is_reported_at_its_pair(reranker_base: Path) -> None:
    class Damaged(OracleForward):
        def run(self, batch: Sequence[TokenSequence], *, exact: bool = False) -> FloatArray:
            rows = super().run(batch, exact=exact)
            rows[[len(sequence.ids) > 60 for sequence in batch]] = float("nan")
            return rows

    scorer = cross_scorer(reranker_base, Damaged())
    with pytest.raises(NonFiniteScoreError, match="pair at position 4 gives nan") as raised:
        scorer.score(with_fault("secret " * 30))
    assert "secret" not in str(raised.value)


def test_a_pair_that_does_not_fit_is_reported_at_its_place(reranker_base: Path) -> None:
    def check(batch: Sequence[TokenSequence]) -> None:
        if any(len(sequence.ids) > 60 for sequence in batch):
            raise DeviceFull

    scorer = cross_scorer(reranker_base, OracleForward(before=check))
    with pytest.raises(OutOfMemoryError, match=r"pair at position 4, of \d+ tokens"):
        scorer.score(with_fault("secret " * 30))


def test_lone_surrogates_reach_the_model_as_the_replacement_character(bge_embedder: Path) -> None:
    for text, cleaned in (
        ("a \ud800 b", "a \ufffd b"),
        ("\udfff", "\ufffd"),
        ("\ud83d\ude00", "😀"),
    ):
        forwards = [OracleForward(), OracleForward()]
        for forward, passed in zip(forwards, (text, cleaned), strict=True):
            bi_scorer(bge_embedder, forward, PairOptions()).score([(passed, "passage")])
        assert forwards[0].finished == forwards[1].finished
