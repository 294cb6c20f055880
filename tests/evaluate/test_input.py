"""What `evaluate` and `JudgedQuery` take, and what each says of anything else."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.evaluate import JudgedQuery, evaluate, retrieve_candidates
from tests.evaluate.data import helped
from tests.fakes import WordOverlapScorer

FOUND = {"p0": "a dog", "p1": "a red fox"}


def test_numpys_numbers_are_numbers() -> None:
    query = JudgedQuery("1", "red fox", FOUND, {"p0": np.int64(0), "p1": np.int64(2)})  # type: ignore[dict-item]
    assert query.grades == {"p0": 0, "p1": 2}
    assert {type(grade) for grade in query.grades.values()} == {int}
    report = evaluate(
        [query],
        {"words": WordOverlapScorer()},
        depths=np.array([1, 2]),  # type: ignore[arg-type]
        resamples=np.int64(100),  # type: ignore[arg-type]
    )
    assert json.loads(json.dumps(asdict(report)))["resamples"] == 100
    assert [row.depth for row in report.rerankers[0].depths] == [1, 2]


def test_queries_may_come_one_by_one() -> None:
    report = evaluate(
        (helped(number) for number in range(3)), {"words": WordOverlapScorer()}, resamples=100
    )
    assert (report.questions, report.left_out) == (3, 0)


def test_grades_are_copied_and_the_callers_are_left_as_they_are() -> None:
    given = {"p0": 0, "p1": np.int64(2)}
    query = JudgedQuery("1", "red fox", FOUND, given)  # type: ignore[arg-type]
    given["p1"] = np.int64(0)
    assert query.grades["p1"] == 2
    assert type(given["p1"]) is np.int64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 1}, "has an id of type int and a text of type str; both must be str"),
        ({"text": None}, "a text of type NoneType"),
        ({"candidates": list(FOUND)}, "candidates of the judged query '1' is a list"),
        ({"grades": ["p1"]}, "grades of the judged query '1' is a list"),
        ({"candidates": {7: "a dog"}}, "a candidate with the id 7 and type str"),
        ({"candidates": {"p0": None}}, "a candidate with the id 'p0' and type NoneType"),
        ({"grades": {7: 1}}, "has the grade 1 for the id 7; ids must be str"),
        ({"grades": {"p1": 1.0}}, "has the grade 1.0 for the id 'p1'"),
        ({"grades": {"p1": True}}, "has the grade True for the id 'p1'"),
        ({"grades": {"p1": "1"}}, "has the grade '1' for the id 'p1'"),
    ],
)
def test_a_judged_query_of_other_kinds_is_named(change: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {
        "id": "1",
        "text": "red fox",
        "candidates": FOUND,
        "grades": {"p1": 1},
    }
    with pytest.raises(InvalidInputError) as error:
        JudgedQuery(**right | change)
    assert said in str(error.value)
    assert "fox" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rerankers": WordOverlapScorer()}, "rerankers is a WordOverlapScorer; it must map names"),
        ({"rerankers": [WordOverlapScorer()]}, "rerankers is a list; it must map names"),
        ({"rerankers": {"a": "offline"}}, "the reranker 'a' is a str; it must have name, scale"),
        ({"depths": [2.5]}, "depths is [2.5]; they must be whole numbers from 1"),
        ({"depths": [5, True]}, "depths is [5, True]; they must be whole numbers from 1"),
        ({"depths": 10}, "depths is 10; it must be a list, such as [10]"),
        ({"seed": None}, "seed is None; it must be a whole number from 0"),
        ({"resamples": 1e4}, "resamples is 10000.0; it must be a whole number from 100"),
        ({"queries": helped(0)}, "queries is a JudgedQuery; it must be a list of JudgedQuery"),
        (
            {"queries": [{"text": "red fox"}]},
            "the query at position 0 is a dict, not a JudgedQuery",
        ),
    ],
)
def test_what_is_given_in_another_form_is_said_before_anything_is_scored(
    change: dict[str, Any], said: str
) -> None:
    scorer = WordOverlapScorer()
    with pytest.raises(InvalidInputError) as error:
        evaluate(**{"queries": [helped(0)], "rerankers": {"a": scorer}} | change)
    assert said in str(error.value)
    assert "fox" not in str(error.value)
    assert scorer.calls == 0


def test_a_retriever_that_finds_nothing_and_grades_of_numpy() -> None:
    (query,) = retrieve_candidates(lambda _: [], {"red fox": {"n1": np.int64(2)}})
    assert (dict(query.candidates), query.grades) == ({}, {"n1": 2})
