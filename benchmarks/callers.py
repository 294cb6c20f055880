"""Many callers at once: throughput, the slowest answers, and whether the answers are right.

    python -m benchmarks.callers base bf16      four callers against sixteen, in turns

That prints what sixteen callers get of the throughput of four, and how many times its fair share
of the time the slowest of twenty requests takes.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import LOADING, Conditions
from benchmarks.measures import quantile
from benchmarks.models import DEFAULT_CACHE, MINI, build_model
from benchmarks.peers import Pair
from benchmarks.plan import Callers
from benchmarks.worker import Worker, serve_many
from benchmarks.workloads import Passages, Workload, texts_for
from bge_rerank_integrations import load_scorer

PASSAGES = Passages(10, 80)
TOLERANCE = 1e-3
"""Largest difference of a score from the one that the same request gets alone."""
MOST_TURNS = 3

Scores = NDArray[np.float64]


def serve_callers(task: Callers, conditions: Conditions) -> dict[str, Any]:
    """A row for each number of callers and each contender, which are loaded one at a time."""
    left_out: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for name in conditions.wanted(task.peers):
        with conditions.worker(name, task.model, left_out) as worker:
            if worker is None:
                continue
            try:
                rows += [serve(worker, task, callers, conditions) for callers in task.callers]
            except ConnectionError as error:
                left_out[name] = str(error)
    return {"callers": rows, "left_out": left_out}


def expected_callers(task: Callers, conditions: Conditions) -> float:
    """Seconds that they will take, roughly."""
    seconds = 0.0
    names = conditions.wanted(task.peers)
    for callers in task.callers:
        lengths = all_lengths(requests_for(task, callers, conditions))
        for name, turns in planned_turns(task, callers, conditions).items():
            seconds += (turns + 1) * conditions.expected(name, task.model, lengths)
    return seconds + LOADING * len(names)


def requests_for(task: Callers, callers: int, conditions: Conditions) -> list[Workload]:
    """A request of ten passages for each time that a caller asks."""
    return conditions.draw(task.model, [PASSAGES] * (callers * task.requests))


def all_lengths(requests: list[Workload]) -> list[int]:
    """The tokens of every pair of every request."""
    return [length for request in requests for length in request.lengths]


def planned_turns(task: Callers, callers: int, conditions: Conditions) -> dict[str, int]:
    """How often each contender answers all requests."""
    return conditions.turns(
        conditions.wanted(task.peers),
        task.model,
        all_lengths(requests_for(task, callers, conditions)),
        seconds=task.seconds / len(task.callers),
        most=MOST_TURNS,
    )


def serve(worker: Worker, task: Callers, callers: int, conditions: Conditions) -> dict[str, Any]:
    """What one contender does with so many callers."""
    requests = requests_for(task, callers, conditions)
    pairs = [request.pairs for request in requests]
    alone = [worker.score(request)[0] for request in pairs]
    turns = planned_turns(task, callers, conditions)[worker.peer]
    served = [worker.serve_many(pairs, callers) for _ in range(turns)]
    latencies = [latency for turn in served for latency in turn["latencies"]]
    rate = statistics.median(len(turn["latencies"]) / turn["seconds"] for turn in served)
    passages = len(pairs[0])
    row = {
        "model": task.model,
        "callers": callers,
        "peer": worker.peer,
        "passages": passages,
        "pairs_per_second": passages * rate,
        "p50": quantile(latencies, 0.5) if latencies else None,
        "p95": quantile(latencies, 0.95) if latencies else None,
        "requests": len(requests) * turns,
        "wrong": sum(wrong_answers(turn["scores"], alone) for turn in served),
        "failed": sum(scores is None for turn in served for scores in turn["scores"]),
        "problem": next((turn["problem"] for turn in served if turn["problem"]), None),
    }
    print(f"  {callers} callers, {worker.peer}: {row['pairs_per_second']:.1f} pairs/s", flush=True)
    return row


def wrong_answers(scores: list[Scores | None], alone: list[Scores]) -> int:
    """How many answers differ from those given alone; those that never came are not counted."""
    return sum(
        given is not None and not np.allclose(given, expected, rtol=0, atol=TOLERANCE)
        for given, expected in zip(scores, alone, strict=True)
    )


def main() -> None:
    """Four callers against sixteen, with this package alone."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", choices=["base", MINI])
    parser.add_argument("precision", choices=["fp32", "bf16"])
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    folder = build_model(DEFAULT_CACHE, asked.model)
    scorer = load_scorer(str(folder), device="cpu", precision=asked.precision)
    texts = texts_for(folder)
    requests = [PASSAGES.draw(texts).pairs for _ in range(32)]

    def score(pairs: Sequence[Pair]) -> Scores:
        return np.asarray(scorer.score(pairs), np.float64)

    alone = [score(request) for request in requests]
    wrong = 0
    rates: dict[int, list[float]] = {4: [], 16: []}
    slowest: dict[int, list[float]] = {4: [], 16: []}
    for _ in range(asked.turns):
        for callers in (4, 16):
            served = serve_many(score, requests, callers)
            rate = len(requests) / served["seconds"]
            rates[callers].append(rate)
            slowest[callers].append(quantile(served["latencies"], 0.95) * rate / callers)
            wrong += wrong_answers(served["scores"], alone)
    for callers, found in rates.items():
        print(
            f"{callers} callers: {PASSAGES.count * statistics.median(found):.1f} pairs/s, "
            f"p95 {statistics.median(slowest[callers]):.2f} of the fair share"
        )
    shares = [many / few for few, many in zip(rates[4], rates[16], strict=True)]
    print(f"16 callers get {statistics.median(shares):.0%} of the throughput of 4; {wrong} wrong")


if __name__ == "__main__":
    main()
