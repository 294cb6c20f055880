"""The playground's data: candidates in, orders, JSON and programs out."""

import contextlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rag_chatbot.markup import badge, comparison, moved
from rag_chatbot.playground import (
    LANGCHAIN,
    LLAMA_INDEX,
    LONGEST_CANDIDATE,
    MAX_CANDIDATES,
    Options,
    PlaygroundError,
    as_code,
    as_json,
    rank,
    read_candidates,
)

from bge_rerank_integrations import InvalidInputError, ModelNotFound
from bge_rerank_integrations.types import FloatArray, Pair
from tests.fakes import LengthScorer

CANDIDATES = ["Stocks fell.", "A bear. Pandas eat.", "Pandas eat bamboo."]


class Queries(LengthScorer):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.queries: set[str] = set()

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.queries |= {query for query, _ in pairs}
        return super().score(pairs)


def test_candidates_are_lines_or_paragraphs() -> None:
    assert read_candidates("one\n\ttwo \n three\n\n") == ["one", "two", "three"]
    assert read_candidates("one\nmore\n \ntwo") == ["one\nmore", "two"]


@pytest.mark.parametrize(
    ("pasted", "message"),
    [
        (" \n ", "no candidates"),
        ("a\n" * (MAX_CANDIDATES + 1), "201 candidates; 200 are the most"),
        ("a" * (LONGEST_CANDIDATE + 1), "20,001 characters; 20,000 are the most"),
    ],
)
def test_candidates_are_bounded(pasted: str, message: str) -> None:
    with pytest.raises(PlaygroundError, match=message):
        read_candidates(pasted)


def test_a_ranking_holds_scores_evidence_and_where_it_ran() -> None:
    ranking = rank("pandas", CANDIDATES, Options("length", top_n=2), scorer=LengthScorer())
    first, second = ranking.results
    assert (first.index, first.raw_score) == (1, 19)
    assert (second.index, second.raw_score) == (2, 18)
    assert first.evidence is not None
    assert CANDIDATES[1][first.evidence.start : first.evidence.end] == "Pandas eat."
    assert [passage.after for passage in ranking.trace.passages] == [None, 0, 1]
    assert ranking.plan == "length"
    assert ranking.notes == ()


def test_the_offline_model_says_its_device_and_its_languages() -> None:
    ranking = rank("熊猫吃什么？", CANDIDATES, Options("offline"))
    assert ranking.plan.startswith("cpu, int8")
    assert ranking.notes == ("offline reads English only: its scores of this query mean nothing.",)


def test_a_query_is_normalized() -> None:
    ranking = rank(
        "\uff30andas \ufb01nd", CANDIDATES, Options("length"), scorer=(seen := Queries())
    )
    assert seen.queries == {"Pandas find"}
    assert len(ranking.results) == 3


def test_what_cannot_be_ranked_says_why() -> None:
    with pytest.raises(PlaygroundError, match="query is empty"):
        rank(" ", CANDIDATES, Options("offline"))
    with pytest.raises(ModelNotFound, match="nobody/nothing"):
        rank("a", CANDIDATES, Options("nobody/nothing"))
    with pytest.raises(InvalidInputError, match="top_n is 0"):
        rank("a", CANDIDATES, Options("offline", top_n=0))


def test_the_export_is_json_with_all_of_it() -> None:
    rankings = [
        rank("pandas", CANDIDATES, Options("one", top_n=1), scorer=LengthScorer()),
        rank("pandas", CANDIDATES, Options("two", normalize=False), scorer=LengthScorer()),
    ]
    exported = json.loads(as_json("pandas", CANDIDATES, rankings))
    assert (exported["query"], exported["candidates"]) == ("pandas", CANDIDATES)
    one, two = exported["rankings"]
    assert one["settings"] == {"model": "one", "top_n": 1}
    assert [result["index"] for result in one["results"]] == [1]
    assert one["results"][0]["evidence"] == [8, 19]
    assert [result["score"] for result in two["results"]] == [19, 18, 12]
    assert two["trace"]["passages"][0] == {
        "before": 0,
        "after": 2,
        "raw_score": 12,
        "score": 12,
    }


@pytest.mark.parametrize("template", [LLAMA_INDEX, LANGCHAIN])
def test_the_exported_programs_give_the_playground_s_result(template: str) -> None:
    candidates = [*CANDIDATES, 'It\'s "quoted" {braces} \\ back\nand a line. 熊猫']
    options = Options("offline", score_threshold=0.00001, max_length=64)
    program = as_code(template, 'What do "pandas" eat?', candidates, options)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "exported", "exec"), names)
    results = rank('What do "pandas" eat?', candidates, options).results
    assert printed.getvalue() == "".join(
        f"{result.score} {candidates[result.index]}\n" for result in results
    )
    assert names["reranker"].max_length == 64


def test_two_orders_stand_beside_each_other_with_lines_for_the_movement() -> None:
    rankings = [
        rank("pandas", CANDIDATES, Options("one", top_n=1), scorer=LengthScorer()),
        rank("pandas", CANDIDATES, Options("<b>two</b>"), scorer=LengthScorer()),
    ]
    shown = comparison(CANDIDATES, rankings, relevant_from=0.1)
    assert re.findall("<h4>(.*?)</h4>", shown) == ["one", "&lt;b&gt;two&lt;/b&gt;"]
    assert "2 were not kept" in shown
    assert "A bear. <mark>Pandas eat.</mark>" in shown
    # lengths 12, 19, 18: the second and third candidates rise, the first goes to the end
    lines = re.findall('class="(\\w+)" x1="0" y1="([0-9.]+)" x2="10" y2="([0-9.]+)"', shown)
    assert lines == [
        ("up", "1.5", "0.5"),
        ("up", "1.5", "0.5"),
        ("up", "2.5", "1.5"),
        ("down", "0.5", "2.5"),
    ]
    assert shown.count(badge(reranked=False)) == shown.count(badge(reranked=True)) == 2


@pytest.mark.parametrize(("relevant_from", "marks"), [(0.0, 3), (0.999994, 2), (1.0, 0)])
def test_evidence_of_raw_scores_is_marked_from_any_probability(
    relevant_from: float, marks: int
) -> None:
    # sigmoid(12) is 0.9999939, and those of 19 and 18 are above
    ranking = rank("pandas", CANDIDATES, Options("raw", normalize=False), scorer=LengthScorer())
    assert comparison(CANDIDATES, [ranking], relevant_from=relevant_from).count("<mark>") == marks


def test_a_movement_is_how_many_places_and_which_way() -> None:
    assert moved(3, 1) == '<span class="up">&#9650;&nbsp;2</span>, was 3'
    assert moved(1, 3) == '<span class="down">&#9660;&nbsp;2</span>, was 1'
    assert moved(2, 2) == "&#61; stayed"
