"""Speed on this machine's CPU: everybody against ours, on the same texts, taking turns.

    python -m benchmarks.race                   everything, under half an hour on two cores
    python -m benchmarks.race --smoke           the same with tiny models, a few minutes
    python -m benchmarks.race --only marco rag --peers "ours fp32" sentence-transformers

Each part says beforehand how long it will take. Its results go into this machine's file in
benchmarks/results as soon as it is done, in place of older ones of the same part; then
`python -m benchmarks.report` writes tables and charts from there. Run it on a quiet machine.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.callers import expected_callers, serve_callers
from benchmarks.cold_start import expected_starts, start_cold
from benchmarks.conditions import Conditions, run_json, stand_in
from benchmarks.models import DEFAULT_CACHE, model_folder
from benchmarks.overhead import expected_overhead, measure_overhead
from benchmarks.peers import OURS, graph_file
from benchmarks.plan import EVERYONE, PARTS, Callers, ColdStart, Overhead, Part, Race
from benchmarks.quiet import processor_time, share_of_others
from benchmarks.report import describe_machine, write_reports
from benchmarks.results import RESULTS, save_part
from benchmarks.turns import expected_race, race

RUN: dict[type, Callable[[Any, Conditions], dict[str, Any]]] = {
    Race: race,
    Callers: serve_callers,
    ColdStart: start_cold,
    Overhead: measure_overhead,
}
EXPECTED: dict[type, Callable[[Any, Conditions], float]] = {
    Race: expected_race,
    Callers: expected_callers,
    ColdStart: expected_starts,
    Overhead: expected_overhead,
}
QUIET = 0.5
"""Load above which other work is in the numbers."""
GRAPHS = ("base", "mini", "tiny")
"""Models that are also exported to ONNX."""


def main() -> None:
    """Run what was asked for, keep the results and write the report."""
    asked = read_arguments()
    cache = asked.cache.expanduser()
    # a smoke run's numbers mean nothing, so they are not kept among the results
    out = asked.out or (cache if asked.smoke else RESULTS)
    parts = {name: PARTS[name] for name in asked.only}
    machine = describe_machine()
    if machine["load"] > QUIET:
        print(f"NOT QUIET: the load is {machine['load']:.1f}; trust ratios only")
    prepare_models(parts, cache, smoke=asked.smoke)
    conditions = Conditions(
        cache, asked.peers, run_json("benchmarks.gemm_peak"), asked.smoke, asked.turns
    )
    print_expected(parts, conditions)
    failed = []
    for name, part in parts.items():
        print(f"{name}: {part.title}", flush=True)
        found: dict[str, Any] = {"machine": describe_machine(), "peak": conditions.peak}
        before = processor_time()
        try:
            found["results"] = [RUN[type(task)](task, conditions) for task in part.tasks]
        except (ConnectionError, subprocess.CalledProcessError) as error:
            # a contender that dies takes its part with it, and not the parts after it
            failed.append(f"{name}: {error}")
            print(f"  failed: {error}", flush=True)
            continue
        after = processor_time()
        found["others"] = (
            share_of_others(before, after, machine["cores"]) if before and after else None
        )
        save_part(name, found, out)
        for peer, why in left_out(found).items():
            print(f"  left out: {peer}: {why}")
            failed += [f"{name}: {peer}: {why}"] if peer.endswith((OURS, ": ours")) else []
    for file in write_reports(out):
        print(file)
    if failed:
        raise SystemExit("\n".join(["these have no results:", *failed]))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name, part in PARTS.items() if not part.on_request]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=usual, metavar="PART")
    parser.add_argument("--peers", nargs="+", choices=EVERYONE, default=tuple(EVERYONE))
    parser.add_argument("--turns", type=int, default=5, help="the most that a contender takes")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where models are kept")
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--smoke", action="store_true", help="tiny models and texts")
    parser.epilog = "parts:\n" + "\n".join(
        f"  {name:16} {part.title}{' (on request)' if part.on_request else ''}"
        for name, part in PARTS.items()
    )
    return parser.parse_args()


def prepare_models(parts: dict[str, Part], cache: Path, *, smoke: bool) -> None:
    """Build the models that are missing, in processes that then give their memory back."""
    models = [model for part in parts.values() for model in part.models]
    for model in dict.fromkeys(stand_in(model) if smoke else model for model in models):
        folder, graph = model_folder(cache, model), model in GRAPHS
        if folder.is_dir() and (not graph or graph_file(folder).is_file()):
            continue
        print(f"building {folder}", flush=True)
        command = [sys.executable, "-m", "benchmarks.models", model, "--cache", str(cache)]
        subprocess.run([*command, *(["--onnx"] if graph else [])], check=True)


def print_expected(parts: dict[str, Part], conditions: Conditions) -> None:
    """How long each part will take, from the machine's fastest product and what each has to do."""
    expected = {
        name: sum(EXPECTED[type(task)](task, conditions) for task in part.tasks)
        for name, part in parts.items()
    }
    for name, seconds in expected.items():
        print(f"{seconds:7.0f} s  {name}")
    print(f"{sum(expected.values()) / 60:7.1f} min, roughly", flush=True)


def left_out(found: dict[str, Any]) -> dict[str, str]:
    """Who is in none of a part's tables, and why."""
    return {name: why for result in found["results"] for name, why in result["left_out"].items()}


if __name__ == "__main__":
    main()
