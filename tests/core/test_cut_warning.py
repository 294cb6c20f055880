"""Nothing is cut in silence: a warning once for each scorer, with counts, whatever the model."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_rerank_integrations import Reranker, load_reranker, load_scorer
from bge_rerank_integrations.trace import RerankTrace
from tests import tiny_models
from tests.llm import tiny_llms

SHORT, LONG, LONGER = "a red fox", "the red fox runs " * 60, "a dog sleeps " * 90
BUILD: list[Callable[[Path], Path]] = [
    tiny_models.build_reranker_base,
    tiny_models.build_bge_embedder,
    tiny_llms.build_gemma,
]


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("build", BUILD)
def test_what_is_cut_is_counted_and_said_once(
    build: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    traces: list[RerankTrace] = []
    with load_scorer(str(build(tmp_path / "model")), max_length=64, device="cpu") as scorer:
        reranker = Reranker(scorer, on_trace=traces.append)
        reranker.rerank("red fox", [SHORT, SHORT + " and a dog"])
        assert warnings(caplog) == []
        reranker.rerank("red fox", [SHORT, LONG, LONGER, LONG])  # equal pairs are scored once
        said = "2 of 3 pairs were longer than max_length=64 tokens and were cut"
        assert [message.startswith(said) for message in warnings(caplog)] == [True]
        assert "fox" not in warnings(caplog)[0]
        reranker.rerank("red fox", [LONGER])
    assert len(warnings(caplog)) == 1
    assert [trace.counts["cut"] for trace in traces] == [0, 2, 1]


def test_a_query_that_is_cut_counts_too(
    reranker_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = load_reranker(str(reranker_base), max_length=64, device="cpu")
    reranker.rerank(LONG, [SHORT, "a dog"])
    assert [message[:9] for message in warnings(caplog)] == ["2 of 2 pa"]


def test_another_scorer_says_it_again_and_the_same_one_in_another_reranker_does_not(
    reranker_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorers = [load_scorer(str(reranker_base), max_length=64, device="cpu") for _ in range(2)]
    for scorer in (*scorers, *scorers):
        Reranker(scorer).rerank("red fox", [LONG])
    assert len(warnings(caplog)) == 2
