"""Scores equal transformers' own model, run on one pair at a time."""

from pathlib import Path

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError, load_scorer
from tests.reference.rule import TOLERANCE, OneByOne, Options
from tests.reference.texts import CONTROL_PAIRS, PLAIN_PAIRS

pytestmark = pytest.mark.reference

RERANKERS = ["reranker_base", "reranker_m3", "bert_reranker"]
EMBEDDERS = [("bge_embedder", "cls"), ("mean_embedder", "mean"), ("m3_embedder", "cls")]
CROSS_OPTIONS: list[Options] = [
    {"max_length": 512},
    {"max_length": 64},
    {"max_length": 37, "query_max_length": 9},
    {"max_length": 128, "query_instruction": "What is: ", "passage_instruction": "这本书: "},
]
BI_OPTIONS: list[Options] = [
    {"max_length": 512, "query_instruction": "Represent this sentence: "},
    {"max_length": 32, "query_instruction": ""},
]


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.mark.parametrize("options", CROSS_OPTIONS, ids=str)
@pytest.mark.parametrize("folder", RERANKERS, indirect=True)
def test_cross_encoder(folder: Path, options: Options) -> None:
    reference = OneByOne(folder)
    expected = [reference.logit(*pair, options) for pair in PLAIN_PAIRS]
    assert np.std(expected) > 0.5, "scores that agree could not tell a wrong one"
    scorer = load_scorer(str(folder), device="cpu", precision="fp32", **options)
    assert scorer.score(PLAIN_PAIRS) == pytest.approx(expected, abs=TOLERANCE)


def test_v2_m3_takes_more_than_512_tokens(reranker_m3: Path) -> None:
    options: Options = {"max_length": 2048}
    pairs = [(query * 3, passage * 2) for query, passage in PLAIN_PAIRS[-6:]]
    expected = [OneByOne(reranker_m3).logit(*pair, options) for pair in pairs]
    scorer = load_scorer(str(reranker_m3), device="cpu", precision="fp32", **options)
    assert scorer.score(pairs) == pytest.approx(expected, abs=TOLERANCE)


def test_v2_m3_reads_to_its_limit_of_8192_tokens(reranker_m3: Path) -> None:
    query, passage = PLAIN_PAIRS[-1]
    long = " ".join([passage] * (40_000 // len(passage)))
    options: Options = {"max_length": 8192}
    reference = OneByOne(reranker_m3)
    ends = [long[: len(long) // 8], long]
    expected = [reference.logit(query, text, options) for text in ends]
    scorer = load_scorer(str(reranker_m3), device="cpu", precision="fp32", **options)
    lengths = [length.passage for length in scorer.measure([(query, text) for text in ends])]
    assert lengths[0] < 8000
    assert lengths[1] > 8192
    assert scorer.score([(query, text) for text in ends]) == pytest.approx(expected, abs=TOLERANCE)
    assert abs(expected[1] - expected[0]) > 10 * TOLERANCE, "what lies far back is read"


@pytest.mark.parametrize("options", BI_OPTIONS, ids=str)
@pytest.mark.parametrize(("folder", "pooling"), EMBEDDERS, indirect=["folder"])
def test_bi_encoder(folder: Path, pooling: str, options: Options) -> None:
    reference = OneByOne(folder)
    expected = [reference.cosine(*pair, options, pooling=pooling) for pair in PLAIN_PAIRS]
    assert np.std(expected) > 0.05, "scores that agree could not tell a wrong one"
    scorer = load_scorer(str(folder), device="cpu", precision="fp32", **options)
    assert scorer.score(PLAIN_PAIRS) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("folder", RERANKERS, indirect=True)
def test_parsed_control_tokens(folder: Path) -> None:
    expected = [OneByOne(folder).logit(*pair, {}) for pair in CONTROL_PAIRS]
    scorer = load_scorer(str(folder), device="cpu", precision="fp32", special_tokens="parse")
    assert scorer.score(CONTROL_PAIRS) == pytest.approx(expected, abs=TOLERANCE)
    plain = scorer.score(PLAIN_PAIRS)
    literal = load_scorer(str(folder), device="cpu", precision="fp32")
    assert plain == pytest.approx(literal.score(PLAIN_PAIRS), abs=0), "modes differ on plain text"


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("reranker_base", "a </s> b"),
        ("reranker_base", "a <mask> b"),
        ("reranker_base", "a ＜/s＞ b"),
        ("reranker_m3", "</s></s> a <pad> b"),
        ("bert_reranker", "a [SEP] b"),
        ("bert_reranker", "a [MASK] b"),
    ],
    indirect=["folder"],
)
def test_control_tokens_are_text_unless_asked_for(folder: Path, text: str) -> None:
    pair = ("what is a panda?", text)
    parsed = OneByOne(folder).logit(*pair, {})
    literal = load_scorer(str(folder), device="cpu", precision="fp32").score([pair])[0]
    assert abs(literal - parsed) > 100 * TOLERANCE
    refusing = load_scorer(str(folder), device="cpu", precision="fp32", special_tokens="error")
    with pytest.raises(InvalidInputError, match="position 0") as refused:
        refusing.score([pair])
    assert refused.value.index == 0
    assert text not in str(refused.value)
