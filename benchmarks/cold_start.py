"""From starting Python to the first score, with the files in the system's cache.

python -m benchmarks.cold_start "ours fp32" FOLDER     one start, as JSON
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.conditions import LOADING, Conditions, run_json
from benchmarks.peers import Unavailable
from benchmarks.plan import EVERYONE, ColdStart
from benchmarks.worker import put_packages_first, silence

PAIR = ("What is a panda?", "A bear that eats bamboo.")


def start_cold(task: ColdStart, conditions: Conditions) -> dict[str, Any]:
    """The medians of a few starts of each contender, which take turns."""
    left_out: dict[str, str] = {}
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in conditions.wanted(task.peers)}
    folder = str(conditions.folder(task.model))
    for _ in range(1 if conditions.smoke else task.starts):
        for name in list(starts):
            begin = time.perf_counter()
            steps = run_json("benchmarks.cold_start", name, folder)
            if "problem" in steps:
                left_out[name] = steps["problem"]
                del starts[name]
                continue
            starts[name].append(steps | {"total": time.perf_counter() - begin})
            print(f"  {name}: {starts[name][-1]['total']:.2f} s", flush=True)
    rows = {
        name: {step: statistics.median(start[step] for start in of) for step in of[0]}
        for name, of in starts.items()
    }
    return {"starts": rows, "left_out": left_out}


def expected_starts(task: ColdStart, conditions: Conditions) -> float:
    """Seconds that they will take, roughly."""
    return LOADING * task.starts * len(conditions.wanted(task.peers))


def main() -> None:
    """Print the seconds that import, load and the first pair take in this process."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("peer", choices=EVERYONE)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    peer = EVERYONE[asked.peer]
    silence()
    try:
        put_packages_first(asked.peer)
        times = [time.perf_counter()]
        importlib.import_module(peer.module)
        times.append(time.perf_counter())
        score = peer.load(asked.folder)
    except (ModuleNotFoundError, Unavailable) as error:
        print(json.dumps({"problem": str(error)}))
        return
    times.append(time.perf_counter())
    score([PAIR])
    times.append(time.perf_counter())
    steps = {
        name: later - earlier
        for name, earlier, later in zip(
            ("import", "load", "first"), times[:-1], times[1:], strict=True
        )
    }
    print(json.dumps(steps | {"modules": len(sys.modules)}))


if __name__ == "__main__":
    main()
