"""A race: contenders in turns on the same texts, their scores compared before a clock runs.

Whoever does not give the reference's scores is left out. Rounds begin with another contender each,
so that a busy moment of the machine hits all alike; slow ones sit out when their time is used up.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import LOADING, Conditions
from benchmarks.measures import order_agreement, ratios, sigmoid
from benchmarks.models import model_flops
from benchmarks.plan import EVERYONE, Race
from benchmarks.worker import Worker
from benchmarks.workloads import Workload

TOLERANCE = {"fp32": 1e-4, "bf16": 1.0}
"""Largest difference of scores from the reference's, by number format; logits spread by 2.4."""
PAUSE = 0.3
"""Seconds before a turn: math libraries keep their threads spinning after the last product."""

Agreement = dict[str, dict[str, Any]]


def race(task: Race, conditions: Conditions) -> dict[str, Any]:
    """A table for each of the texts, and why some contenders are in none."""
    left_out: dict[str, str] = {}
    tables = []
    with ExitStack() as stack:
        workers = {
            name: worker
            for name in conditions.wanted(task.peers)
            if (worker := stack.enter_context(conditions.worker(name, task.model, left_out)))
        }
        workloads = conditions.draw(task.model, task.texts)
        first = workloads[0]
        scores = {name: worker.score(first.pairs[:8])[0] for name, worker in workers.items()}
        note_wrong(compare(scores), first, left_out)
        for workload in workloads:
            for name in left_out:
                workers.pop(name, None)
            tables.append(race_on(workload, task, workers, conditions, left_out))
    return {"tables": tables, "left_out": left_out}


def expected_race(task: Race, conditions: Conditions) -> float:
    """Seconds that the race will take, roughly."""
    names = conditions.wanted(task.peers)
    scoring = sum(
        conditions.expected(name, task.model, workload.lengths) * turns
        for workload in conditions.draw(task.model, task.texts)
        for name, turns in planned_turns(workload, task, names, conditions).items()
    )
    return scoring + LOADING * len(names)


def planned_turns(
    workload: Workload, task: Race, names: list[str], conditions: Conditions
) -> dict[str, int]:
    """How often each contender scores these texts."""
    return conditions.turns(
        names,
        task.model,
        workload.lengths,
        seconds=task.seconds / len(task.texts),
        most=task.most_turns,
    )


def race_on(
    workload: Workload,
    task: Race,
    workers: Mapping[str, Worker],
    conditions: Conditions,
    left_out: dict[str, str],
) -> dict[str, Any]:
    """One table: a row for each contender that gave the right scores."""
    turns = planned_turns(workload, task, list(workers), conditions)
    seconds, scores = take_turns(workers, workload, turns, pause=0.0 if conditions.smoke else PAUSE)
    agreement = compare(scores)
    note_wrong(agreement, workload, left_out)
    seconds = {name: taken for name, taken in seconds.items() if name not in left_out}
    times_ours = ratios(seconds, task.peers[0])
    folder = conditions.folder(task.model)
    rows = {}
    for name, taken in seconds.items():
        median, peer = statistics.median(taken), EVERYONE[name]
        # a CPU without bfloat16 has no peak of it to have a share in
        peak = conditions.peak.get(peer.precision)
        flops = model_flops(folder, workload.lengths) / median
        rows[name] = {
            "seconds": taken,
            "median": median,
            "pairs_per_second": len(workload.pairs) / median,
            "share_of_peak": None if peak is None else flops / peak,
            "times_ours": times_ours.get(name),
            "loaded_memory": workers[name].loaded["memory"],
            "peak_memory": workers[name].peak_memory(),
            "versions": workers[name].loaded["versions"],
            **agreement[name],
        }
        print(f"  {workload.name}: {name} {median:.3f} s", flush=True)
    return {
        "workload": workload.name,
        "model": task.model,
        "axis": task.axis,
        "pairs": len(workload.pairs),
        "tokens": statistics.mean(workload.lengths),
        "rows": rows,
    }


def take_turns(
    workers: Mapping[str, Worker], workload: Workload, turns: Mapping[str, int], *, pause: float
) -> tuple[dict[str, list[float]], dict[str, NDArray[np.float64]]]:
    """The seconds of every contender's turns, and its scores."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    scores = {}
    names = list(workers)
    for number in range(max(turns.values(), default=0)):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if number < turns[name]:
                time.sleep(pause)
                scores[name], taken = workers[name].score(workload.pairs)
                seconds[name].append(taken)
    return seconds, scores


def compare(scores: Mapping[str, NDArray[np.float64]]) -> Agreement:
    """Every contender's error and order against the reference's, and what is wrong if anything.

    The reference is the first in float32 that gives scores and is not ours, in its absence the
    first of all. Passages closer than two tolerances have no order to agree on between float32
    computations; a half format's order is shown and not judged.
    """
    with_scores = [name for name in scores if EVERYONE[name].scale != "rank"]
    if not with_scores:
        return {name: {"problem": None} for name in scores}
    exact = [name for name in with_scores if EVERYONE[name].precision == "fp32"]
    first = next((name for name in exact if "ours" not in name), (exact or with_scores)[0])
    as_logits = EVERYONE[first].scale == "logit"
    found: Agreement = {}
    for name, given in scores.items():
        peer, expected = EVERYONE[name], scores[first]
        got = given
        if peer.scale == "sigmoid" and as_logits:
            expected = sigmoid(expected)
        elif peer.scale == "logit" and not as_logits:
            got = sigmoid(given)
        tolerance, ordered = TOLERANCE[peer.precision], peer.precision == "fp32"
        tau = order_agreement(got, expected, tolerance=2 * tolerance if ordered else 0.0)
        largest = None if peer.scale == "rank" else float(np.abs(got - expected).max())
        wrong = (ordered and tau < 1) or (largest is not None and not largest <= tolerance)
        found[name] = {
            "reference": first,
            "largest_error": largest,
            "tau": tau,
            "problem": f"scores differ from {first}: {largest}, tau {tau}" if wrong else None,
        }
    return found


def note_wrong(agreement: Agreement, workload: Workload, left_out: dict[str, str]) -> None:
    """Leave out who gave other scores than the reference, with what `compare` says of them."""
    for name, found in agreement.items():
        if found["problem"]:
            left_out[name] = f"{workload.name}: {found['problem']}"
