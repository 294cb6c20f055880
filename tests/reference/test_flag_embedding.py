"""Scores equal FlagEmbedding's, on the transformers releases where FlagEmbedding is right.

FlagEmbedding 1.4 joins query and passage ids itself up to transformers 4.57. transformers 5 no
longer offers that call, and FlagEmbedding decodes the ids to text and tokenizes that again: an
unknown character or a cut inside a word then gives other ids than its own rule asks for, and an
empty passage loses its place in the pair. So under transformers 5 only the other pairs are
compared; `make test` runs this folder under both.
"""

from pathlib import Path

import pytest
import transformers
from FlagEmbedding import FlagModel, FlagReranker

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.types import Pair
from tests.reference.rule import TOLERANCE, OneByOne, Options
from tests.reference.texts import CONTROL_PAIRS, PLAIN_PAIRS

pytestmark = pytest.mark.reference

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
OPTIONS: list[Options] = [
    {"max_length": 512},
    {"max_length": 64},
    {"max_length": 40, "query_max_length": 10},
    {"max_length": 128, "query_instruction": "What is: ", "passage_instruction": "这本书: "},
]


def comparable(folder: Path, options: Options, pairs: list[Pair]) -> list[Pair]:
    if TRANSFORMERS_4:
        return pairs
    tokenizer, length = OneByOne(folder).tokenizer, options["max_length"]
    unknown = {tokenizer.token_to_id(token) for token in ("<unk>", "[UNK]")}
    query_length = options.get("query_max_length", length * 3 // 4)
    kept = []
    for query, passage in pairs:
        first = tokenizer.encode(options.get("query_instruction", "") + query).ids
        second = tokenizer.encode(options.get("passage_instruction", "") + passage).ids
        uncut = len(first) <= query_length and len(first) + len(second) <= length
        if uncut and not unknown & {*first, *second} and len(second) > 2:
            kept.append((query, passage))
    return kept


def flag_scores(folder: Path, options: Options, pairs: list[Pair]) -> list[float]:
    reference = FlagReranker(
        str(folder),
        use_fp16=False,
        devices="cpu",
        max_length=options["max_length"],
        query_max_length=options.get("query_max_length"),
        query_instruction_for_rerank=options.get("query_instruction"),
        passage_instruction_for_rerank=options.get("passage_instruction"),
    )
    scores: list[float] = reference.compute_score(pairs)
    return scores


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["reranker_base", "reranker_m3", "bert_reranker"])
def test_reranker(name: str, options: Options, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    pairs = comparable(folder, options, PLAIN_PAIRS)
    assert len(pairs) > 3
    scorer = load_scorer(str(folder), device="cpu", precision="fp32", **options)
    expected = flag_scores(folder, options, pairs)
    assert scorer.score(pairs) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.skipif(not TRANSFORMERS_4, reason="FlagEmbedding loses control tokens' places on 5")
@pytest.mark.parametrize("name", ["reranker_base", "reranker_m3", "bert_reranker"])
def test_parsed_control_tokens(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    scorer = load_scorer(str(folder), device="cpu", precision="fp32", special_tokens="parse")
    expected = flag_scores(folder, {"max_length": 512}, CONTROL_PAIRS)
    assert scorer.score(CONTROL_PAIRS) == pytest.approx(expected, abs=TOLERANCE)


def test_embedder(bge_embedder: Path) -> None:
    instruction = "Represent this sentence for searching relevant passages: "
    reference = FlagModel(
        str(bge_embedder),
        query_instruction_for_retrieval=instruction,
        use_fp16=False,
        devices="cpu",
    )
    queries = reference.encode_queries([query for query, _ in PLAIN_PAIRS])
    passages = reference.encode_corpus([passage for _, passage in PLAIN_PAIRS])
    scorer = load_scorer(
        str(bge_embedder), device="cpu", precision="fp32", query_instruction=instruction
    )
    expected = (queries * passages).sum(axis=1)
    assert scorer.score(PLAIN_PAIRS) == pytest.approx(expected, abs=TOLERANCE)
