"""From starting Python to the first score, with the files in the system's cache."""

import statistics
import time
from typing import Any

from benchmarks.conditions import LOADING, Conditions, run_json
from benchmarks.plan import ColdStart


def start_cold(task: ColdStart, conditions: Conditions) -> dict[str, Any]:
    """The medians of a few starts of each contender, which take turns."""
    left_out: dict[str, str] = {}
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in conditions.wanted(task.peers)}
    folder = str(conditions.folder(task.model))
    for _ in range(1 if conditions.smoke else task.starts):
        for name in list(starts):
            begin = time.monotonic()
            steps = run_json("benchmarks.first_score", name, folder)
            if "problem" in steps:
                left_out[name] = steps["problem"]
                del starts[name]
                continue
            # not what its end takes
            starts[name].append(steps | {"total": steps.pop("at") - begin})
            print(f"  {name}: {starts[name][-1]['total']:.2f} s", flush=True)
    rows = {
        name: {step: statistics.median(start[step] for start in of) for step in of[0]}
        for name, of in starts.items()
    }
    return {"starts": rows, "left_out": left_out}


def expected_starts(task: ColdStart, conditions: Conditions) -> float:
    """Seconds that they will take, roughly."""
    return LOADING * task.starts * len(conditions.wanted(task.peers))
