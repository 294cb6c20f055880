"""What our adapters take on top of scoring: the same passages with and without them.

    python -m benchmarks.overhead FOLDER --passages 40 --tokens 80 --rounds 5     as JSON

Two measurements, in one process and with one scorer: the adapter around a scorer that has the
scores already, which is the adapter's own time; and the adapter around the model in turns with the
model alone, whose ratio also holds what noise there is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import LOADING, Conditions, run_json
from benchmarks.peers import OURS
from benchmarks.plan import Overhead
from benchmarks.worker import silence
from benchmarks.workloads import Passages, Workload, texts_for
from bge_rerank_integrations.types import Pair, Scale

CALLS = 50
"""Calls of an adapter alone: each takes about a millisecond."""


class KnownScores:
    """A scorer that has the scores of one request already."""

    name = "known-scores"
    scale: Scale = "logit"

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        if len(pairs) != len(self._scores):
            raise ValueError(f"{len(pairs)} pairs, and scores of {len(self._scores)}")
        return self._scores.copy()


def measure_overhead(task: Overhead, conditions: Conditions) -> dict[str, Any]:
    """A row for each framework."""
    if OURS not in conditions.peers:
        return {"overhead": {}, "left_out": {}}
    passages = task.passages.small() if conditions.smoke else task.passages
    options = {"passages": passages.count, "tokens": passages.mean, "rounds": task.rounds}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folder = str(conditions.folder(task.model))
    rows = run_json("benchmarks.overhead", folder, *arguments)
    for name, row in rows.items():
        print(f"  {name}: {1000 * row['alone']:.2f} ms", flush=True)
    return {"overhead": rows, "model": task.model, "passages": passages.count, "left_out": {}}


def expected_overhead(task: Overhead, conditions: Conditions) -> float:
    """Seconds that it will take, roughly."""
    [workload] = conditions.draw(task.model, [task.passages])
    each = conditions.expected(OURS, task.model, workload.lengths)
    return 3 * (task.rounds + 1) * each + LOADING


def calls_around(scorer: Any, workload: Workload) -> dict[str, Callable[[], object]]:
    """One rerank of the workload through each of our adapters, their input made beforehand."""
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from bge_rerank_integrations import langchain, llama_index

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in workload.passages]
    documents = [Document(page_content=text) for text in workload.passages]
    postprocessor = llama_index.BGERerank(scorer=scorer, top_n=None)
    compressor = langchain.BGERerank(scorer=scorer, top_n=None)
    return {
        "LlamaIndex": lambda: postprocessor.postprocess_nodes(nodes, query_str=workload.query),
        "LangChain": lambda: compressor.compress_documents(documents, workload.query),
    }


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Measure, and print a row for each framework."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    silence()
    from bge_rerank_integrations import load_scorer

    workload = Passages(asked.passages, asked.tokens).draw(texts_for(asked.folder))
    scorer = load_scorer(str(asked.folder), device="cpu", precision="fp32")
    known = KnownScores(scorer.score(workload.pairs))
    alone = {}
    for name, call in calls_around(known, workload).items():
        call()  # the first one imports what comes late
        alone[name] = statistics.median(seconds_of(call) for _ in range(CALLS))
    model = "model"
    calls = {model: lambda: scorer.score(workload.pairs)} | calls_around(scorer, workload)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(asked.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(calls[name]))
    scoring = statistics.median(seconds.pop(model))
    rows = {
        name: {
            "alone": alone[name],
            "scoring": scoring,
            "with_adapter": statistics.median(taken),
            "share": alone[name] / scoring,
        }
        for name, taken in seconds.items()
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
