"""Where the time of a rerank goes, and what scorers say of themselves on the way."""

import json
import time
from pathlib import Path

import pytest

from bge_rerank_integrations import Reranker, load_scorer
from bge_rerank_integrations.base.trace import RerankTrace, note, recording, timed

PASSAGES = ["a dog", "the red fox", "a fox", "red fox red", "the red fox", "a red hat " * 400]


def spend(seconds: float) -> None:
    """Work for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        continue


def test_a_stage_is_given_the_time_of_its_blocks() -> None:
    begin = time.perf_counter()
    with recording() as recorder:
        with timed("tokenizing"):
            spend(0.02)
        spend(0.1)
        for _ in range(2):
            with timed("computing"):
                spend(0.03)
    whole = time.perf_counter() - begin
    seconds = recorder.seconds
    assert set(seconds) == {"tokenizing", "computing"}
    assert seconds["computing"] >= 0.06
    assert 0.02 <= seconds["tokenizing"] <= whole - 0.06 - 0.1


def test_nothing_is_noted_outside_and_an_inner_recording_is_apart() -> None:
    note({"cached": 5})
    with timed("computing"), recording() as outer:
        note({"cached": 1}, {"device": "cpu"})
        with recording() as inner:
            note({"cached": 7})
        note({"cached": 2, "cut": 1})
    assert (outer.counts, outer.facts) == ({"cached": 3, "cut": 1}, {"device": "cpu"})
    assert inner.counts == {"cached": 7}


@pytest.mark.parametrize("device", ["cpu", ["cpu", "cpu"]])
def test_a_local_scorer_says_what_it_did(reranker_base: Path, device: str | list[str]) -> None:
    traces: list[RerankTrace] = []
    with load_scorer(str(reranker_base), device=device, batch_size=2) as scorer:
        results = Reranker(scorer, top_n=2, on_trace=traces.append).rerank("red fox", PASSAGES)
    (trace,) = traces
    assert dict(trace.counts) == {"computed": 5, "cut": 1}  # two passages are equal
    assert trace.facts["model"] == str(reranker_base)
    assert trace.facts["precision"] == "fp32"
    assert trace.facts["device"] == ("cpu" if device == "cpu" else "cpu, cpu")
    assert [p.before for p in sorted(trace.passages, key=lambda p: (p.after is None, p.after))][
        :2
    ] == [result.index for result in results]
    assert trace.kept_by == "top_n 2 leaves 2"
    seconds = trace.seconds
    assert set(seconds) == {"total", "tokenizing", "queueing", "computing"}
    assert min(seconds.values()) >= 0
    if device == "cpu":
        assert sum(seconds.values()) - seconds["total"] <= seconds["total"]
    assert json.loads(json.dumps(trace.as_dict())) == trace.as_dict()
    assert "fox" not in json.dumps(trace.as_dict())
