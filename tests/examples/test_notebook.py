"""Manners in a notebook: tables that escape, options that can be completed, bars that close."""

import asyncio
import copy
import inspect
import io
import pickle
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from bge_rerank_integrations import (
    Evidence,
    InvalidInputError,
    Reranker,
    RerankResult,
    langchain,
    llama_index,
    load_reranker,
    load_scorer,
)
from bge_rerank_integrations.base.html import html_table
from bge_rerank_integrations.base.trace import PassageTrace, RerankTrace
from bge_rerank_integrations.local.device import DevicePlan, Hardware, plan_device
from bge_rerank_integrations.options import ScorerOptions
from bge_rerank_integrations.ranking.reranker import RerankerOptions
from bge_rerank_integrations.ranking.results import RerankResults
from bge_rerank_integrations.types import OnError, Precision, Truncation
from tests.fakes import FailingScorer, WordOverlapScorer

EVIL = "<script>alert(1)</script>&\"'"
PASSAGES = ["a dog", "a red fox", "a red hat"]


class _Tables(HTMLParser):
    """The tables of a fragment as texts, and every tag and attribute that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        self.tables[-1][-1][-1] += data


def tables_of(shown: Any) -> list[list[list[str]]]:
    """What the tables say, after a check that they are nothing but tables."""
    parser = _Tables()
    parser.feed(shown if isinstance(shown, str) else shown._repr_html_())
    parser.close()
    assert parser.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert parser.attributes == []
    return parser.tables


def test_a_cell_says_what_its_value_is() -> None:
    rows: list[list[object]] = [[EVIL, 3, None], [0.5, 0.99998765, float("nan")]]
    assert tables_of(html_table([EVIL, "<b>", ""], rows)) == [
        [[EVIL, "<b>", ""], [EVIL, "3", ""], ["0.5", "0.999988", "nan"]]
    ]


def test_results_are_a_table() -> None:
    results = Reranker(WordOverlapScorer(), normalize=False).rerank("red fox", PASSAGES)
    assert tables_of(results) == [
        [
            ["place", "was", "index", "score", "raw score"],
            ["1", "2", "1", "2", "2"],
            ["2", "3", "2", "1", "1"],
            ["3", "1", "0", "0", "0"],
        ]
    ]


def test_results_show_what_was_not_scored_and_where_the_evidence_lies() -> None:
    reranker = Reranker(FailingScorer(scored=2), on_error="keep", normalize=False)
    (table,) = tables_of(reranker.rerank("red fox", PASSAGES))
    assert table[0][-1] == "scored"
    assert [row[-1] for row in table[1:]] == ["yes", "yes", "no"]
    assert table[3] == ["3", "3", "2", "", "", "no"]

    found = RerankResult(0, 0.5, 0.0, evidence=Evidence(4, 9, 0.75, 1.5, "words"))
    (table,) = tables_of(RerankResults([found, RerankResult(1, 0.25, -1.0)]))
    assert [row[5:] for row in table] == [["evidence", "evidence score"], ["4:9", "0.75"], ["", ""]]


def test_results_are_still_a_list() -> None:
    reranker = Reranker(WordOverlapScorer())
    results = reranker.rerank("red fox", PASSAGES)
    assert isinstance(results, list)
    assert results == list(results)
    assert [result.index for result in results] == [1, 2, 0]
    assert type(results[0]) is RerankResult
    assert asyncio.run(reranker.arerank("red fox", PASSAGES)) == results
    same = [pickle.loads(pickle.dumps(results)), copy.copy(results), copy.deepcopy(results)]
    for other in [
        *same,
        results.copy(),
        results[:],
        asyncio.run(reranker.arerank("red fox", PASSAGES)),
    ]:
        assert type(other) is RerankResults
        assert other == results
    assert type(results[1:]) is RerankResults
    assert results[1:] == list(results)[1:]
    assert tables_of(results[:1])[0][1:] == tables_of(results)[0][1:2]
    assert repr(results) == repr(list(results))


def test_no_results_are_a_table_without_rows() -> None:
    none = Reranker(WordOverlapScorer()).rerank("red fox", [])
    assert none == []
    assert tables_of(none) == [[["place", "was", "index", "score", "raw score"]]]


def test_a_plan_is_a_table() -> None:
    plan = plan_device(Hardware(cores=2), device="cpu", precision="fp16")
    (table,) = tables_of(plan)
    assert table[1:5] == [
        ["device", "cpu"], ["precision", "fp32"], ["attention", "runs"],
        ["tokens in a batch", "2048"],
    ]  # fmt: skip
    assert table[5:] == [["reason", reason] for reason in plan.reasons]
    evil = DevicePlan(EVIL, "float32", False, "runs", 1, (EVIL,))
    assert tables_of(evil)[0][1] == ["device", EVIL]
    assert tables_of(evil)[0][-1] == ["reason", EVIL]


def test_a_trace_is_tables() -> None:
    trace = RerankTrace(
        passages=(PassageTrace(0, 1, 2.5, 0.75), PassageTrace(1, None, None, None)),
        scale="logit",
        calibrated=False,
        kept_by=EVIL,
        failure=None,
        evidence_failure=None,
        counts={"computed": 2},
        seconds={"total": 0.25},
        facts={"model": EVIL},
    )
    passages, said = tables_of(trace)
    assert passages[1:] == [["0", "1", "0.75", "2.5"], ["1", "", "", ""]]
    assert said[1:] == [
        ["scale", "logit"], ["calibrated", "no"], ["kept by", EVIL], ["computed", "2"],
        ["total, seconds", "0.25"], ["model", EVIL],
    ]  # fmt: skip


PUBLIC: list[Callable[..., Any]] = [
    load_scorer, load_reranker, Reranker, llama_index.BGERerank, langchain.BGERerank,
]  # fmt: skip


@pytest.mark.parametrize("public", PUBLIC, ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_options_can_be_completed(public: Callable[..., Any]) -> None:
    parameters = inspect.signature(public).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert inspect.Parameter.VAR_POSITIONAL not in kinds
    assert {"top_n", "on_error"} <= set(parameters) or public is load_scorer
    if public is not Reranker:
        assert {"model", "precision", "truncation", "show_progress"} <= set(parameters)


@pytest.mark.parametrize(
    ("public", "option", "values"),
    [
        (RerankerOptions, "on_error", get_args(OnError)),
        (ScorerOptions, "precision", get_args(Precision)),
        (ScorerOptions, "truncation", get_args(Truncation)),
        *[
            (adapter.BGERerank, option, get_args(kind))
            for adapter in (llama_index, langchain)
            for option, kind in (
                ("on_error", OnError), ("precision", Precision), ("truncation", Truncation),
            )
        ],
    ],
)  # fmt: skip
def test_the_values_of_an_option_can_be_read(
    public: Callable[..., Any], option: str, values: tuple[str, ...]
) -> None:
    hint = get_type_hints(public)[option]
    # None besides, where the model's folder decides
    (hint, *_) = get_args(hint) if get_origin(hint) is not Literal else (hint,)
    assert get_origin(hint) is Literal
    assert get_args(hint) == values


def test_the_bar_goes_to_stderr_and_closes() -> None:
    scorer = load_scorer("offline", show_progress=True)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        scorer.score([("red fox", passage) for passage in PASSAGES])
    assert out.getvalue() == ""
    assert "3/3" in err.getvalue()
    assert err.getvalue().endswith("\n"), "a closed bar ends its line"


def test_a_call_that_fails_under_way_closes_its_bar() -> None:
    scorer = load_scorer("offline", show_progress=True, special_tokens="error")
    pairs = [("red fox", passage) for passage in [*PASSAGES[:2], "a [SEP] token"]]
    err = io.StringIO()
    with redirect_stderr(err), pytest.raises(InvalidInputError, match="position 2"):
        scorer.score(pairs)
    assert "0/3" in err.getvalue()
    assert err.getvalue().endswith("\n")
