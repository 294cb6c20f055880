"""Races on the CPU: everybody against ours, on the same texts, taking turns.

    python -m benchmarks.race                   everything, about a quarter of an hour on two cores
    python -m benchmarks.race --smoke           the same with tiny models, under a minute
    python -m benchmarks.race --only marco rag --peers "ours fp32" sentence-transformers

Every contender has a process of its own and works while the others wait. Scores are compared before
a clock runs, and whoever does not give the reference's is left out. Then come rounds: one turn for
each, in changing order, so that a busy moment of the machine hits all alike. Results are medians;
they go to benchmarks/results as JSON, Markdown and a chart. Run it on a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measures import encoder_flops, order_agreement, quantile, ratios, sigmoid
from benchmarks.models import DEFAULT_CACHE, model_folder, read_shape
from benchmarks.peers import (
    EVERYONE,
    LANGCHAIN,
    LANGCHAIN_OURS,
    LLAMA_INDEX,
    LLAMA_INDEX_OURS,
    OURS,
    PEERS,
    REFERENCE,
    Unavailable,
)
from benchmarks.plan import CONCURRENCY, RACES, Race
from benchmarks.report import describe_machine, write_report
from benchmarks.worker import Worker
from benchmarks.workloads import Workload, texts_for

TOLERANCE = 5e-5
"""Largest difference of scores between two float32 computations of the same model."""

SMOKE_PEERS = (OURS, "ours bf16", REFERENCE, LLAMA_INDEX_OURS, LANGCHAIN_OURS)
COLD_STARTERS = (OURS, REFERENCE, "FlagEmbedding", "transformers", *LLAMA_INDEX, *LANGCHAIN)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    sections: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int
    cache: Path
    smoke: bool

    def folder(self, model: str) -> Path:
        return model_folder(self.cache, "tiny" if self.smoke else model)

    def wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.peers]


def main() -> None:
    """Run what was asked for and write the report."""
    settings, out = read_arguments()
    results: dict[str, Any] = {"machine": describe_machine(), "rounds": settings.rounds}
    if results["machine"]["load"] > 0.5:
        print(f"NOT QUIET: the load is {results['machine']['load']:.1f}; trust ratios only")
    prepare_models(settings)
    results["peak"] = run_json("benchmarks.gemm_peak")
    results["races"], results["left_out"] = [], {}
    for races in by_worker_pool(settings):
        with ExitStack() as stack:
            workers = open_workers(stack, races, settings, results["left_out"])
            for race in races:
                results["races"] += run_race(race, workers, settings, results)
                write_report(results, out)
            if "concurrency" in settings.sections and CONCURRENCY in races:
                results["concurrency"] = serve_callers(workers, settings)
    if "cold start" in settings.sections:
        results["cold start"] = start_cold(settings)
    for file in write_report(results, out):
        print(file)
    if any(name.endswith(("ours fp32", ": ours")) for name in results["left_out"]):
        raise SystemExit(f"ours did not run: {results['left_out']}")


def read_arguments() -> tuple[Settings, Path]:
    """The settings, and the folder for results."""
    sections = [*dict.fromkeys(race.section for race in RACES), "concurrency", "cold start"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--peers", nargs="+", choices=EVERYONE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where models are kept")
    parser.add_argument("--out", type=Path, help="where the report goes")
    parser.add_argument("--smoke", action="store_true", help="tiny models and texts")
    asked = parser.parse_args()
    peers = asked.peers or (SMOKE_PEERS if asked.smoke else tuple(EVERYONE))
    # a smoke run's numbers mean nothing, so they are not kept among the results
    results = asked.cache.expanduser() if asked.smoke else Path(__file__).parent / "results"
    settings = Settings(tuple(asked.only), tuple(peers), asked.rounds, asked.cache, asked.smoke)
    return settings, asked.out or results


def prepare_models(settings: Settings) -> None:
    """Build the models that are missing, in processes that then give their memory back."""
    chosen = [race.model for race in RACES if race.section in settings.sections]
    chosen += [CONCURRENCY.model] if "concurrency" in settings.sections else []
    chosen += ["base"] if "cold start" in settings.sections else []
    for model in dict.fromkeys("tiny" if settings.smoke else model for model in chosen):
        folder = model_folder(settings.cache, model)
        # only races of the XLM-R shapes have ONNX Runtime in them
        onnx = "ONNX Runtime" in settings.peers and model in ("base", "tiny")
        if folder.is_dir() and (not onnx or (folder / "onnx" / "model.onnx").is_file()):
            continue
        print(f"building {folder}")
        command = [sys.executable, "-m", "benchmarks.models", model, "--cache", str(settings.cache)]
        subprocess.run([*command, *(["--onnx"] if onnx else [])], check=True)


def by_worker_pool(settings: Settings) -> list[list[Race]]:
    """The races asked for, those of one model and one kind of contender together."""
    pools: dict[tuple[Path, bool], list[Race]] = {}
    for race in (*RACES, CONCURRENCY):
        if race.section in settings.sections and settings.wanted(race.peers):
            pools.setdefault((settings.folder(race.model), race.peers[0] in PEERS), []).append(race)
    return list(pools.values())


def open_workers(
    stack: ExitStack, races: Sequence[Race], settings: Settings, left_out: dict[str, str]
) -> dict[str, Worker]:
    """A process for every contender of these races that can be loaded."""
    workers = {}
    for name in settings.wanted(list(dict.fromkeys(n for race in races for n in race.peers))):
        print(f"loading {name} with {races[0].model}")
        try:
            workers[name] = stack.enter_context(Worker(name, settings.folder(races[0].model)))
        except (Unavailable, ConnectionError) as error:
            left_out[f"{races[0].model}, {name}"] = str(error)
    return workers


def run_race(
    race: Race, pool: Mapping[str, Worker], settings: Settings, results: dict[str, Any]
) -> list[dict[str, Any]]:
    """One table per workload of the race."""
    folder = settings.folder(race.model)
    tables = []
    for workload in race.workloads(texts_for(folder), smoke=settings.smoke):
        workers = {name: pool[name] for name in race.peers if name in pool}
        where = f"{race.section}, {workload.name}"
        warm_up = first_pairs(workload, 8)
        scores = {name: worker.score(warm_up.pairs)[0] for name, worker in workers.items()}
        for name, problem in wrong_ones(compare(scores)).items():
            results["left_out"][f"{where}, {name}"] = problem
            del workers[name]
        rounds = min(settings.rounds, race.most_rounds)
        seconds, scores = take_turns(
            workers, workload, rounds, pause=0.0 if settings.smoke else 0.3
        )
        shape = read_shape(folder)
        flops = encoder_flops(shape.hidden, shape.layers, shape.ffn, workload.lengths)
        agreement = compare(scores)
        for name, problem in wrong_ones(agreement).items():
            results["left_out"][f"{where}, {name}"] = problem
            del seconds[name]
        table: dict[str, Any] = {
            "section": race.section,
            "workload": workload.name,
            "model": folder.name,
            "pairs": len(workload.pairs),
            "tokens": statistics.mean(workload.lengths),
            "rounds": rounds,
            "rows": {},
        }
        for name, times in seconds.items():
            median = statistics.median(times)
            peak = results["peak"].get("fp32" if EVERYONE[name].exact else "bf16")
            table["rows"][name] = {
                "seconds": times,
                "median": median,
                "pairs_per_second": len(workload.pairs) / median,
                "share_of_peak": flops / median / peak,
                "times_ours": ratios(seconds, race.peers[0]).get(name),
                "peak_memory": workers[name].peak_memory(),
                **agreement[name],
            }
            print(f"  {where}: {name} {median:.3f} s", flush=True)
        tables.append(table)
    return tables


def first_pairs(workload: Workload, count: int) -> Workload:
    """The workload with its first passages alone."""
    return Workload(
        workload.name, workload.query, workload.passages[:count], workload.lengths[:count]
    )


def take_turns(
    workers: Mapping[str, Worker], workload: Workload, rounds: int, *, pause: float
) -> tuple[dict[str, list[float]], dict[str, NDArray[np.float64]]]:
    """The seconds of every contender's turns, and its scores."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    scores = {}
    names = list(workers)
    for number in range(rounds):
        for name in names[number:] + names[:number]:
            # math libraries keep their threads spinning for a while after the last product
            time.sleep(pause)
            scores[name], taken = workers[name].score(workload.pairs)
            seconds[name].append(taken)
    return seconds, scores


def compare(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, Any]]:
    """Every contender's error and order against the reference's, and what is wrong if anything.

    The reference is the first that gives scores and is not ours, in its absence the first of all:
    sentence-transformers, or LlamaIndex's adapter to it. Passages closer than two tolerances have
    no order to agree on between float32 computations.
    """
    with_scores = [name for name in scores if EVERYONE[name].scale != "rank"]
    if not with_scores:
        return {name: {"problem": None} for name in scores}
    first = next((name for name in with_scores if "ours" not in name), with_scores[0])
    as_logits = EVERYONE[first].scale == "logit"
    found: dict[str, dict[str, Any]] = {}
    for name, given in scores.items():
        peer, expected = EVERYONE[name], scores[first]
        got = given
        if peer.scale == "sigmoid" and as_logits:
            expected = sigmoid(expected)
        elif peer.scale == "logit" and not as_logits:
            got = sigmoid(given)
        tau = order_agreement(got, expected, tolerance=2 * TOLERANCE if peer.exact else 0.0)
        error = None if peer.scale == "rank" else np.abs(got - expected)
        wrong = peer.exact and (tau < 1 or (error is not None and error.max() > TOLERANCE))
        largest = None if error is None else float(error.max())
        found[name] = {
            "largest_error": largest,
            "mean_error": None if error is None else float(error.mean()),
            "tau": tau,
            "problem": f"scores differ from {first}: {largest}, tau {tau}" if wrong else None,
        }
    return found


def wrong_ones(agreement: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Who gave other scores than the reference, and what `compare` says of them."""
    return {name: found["problem"] for name, found in agreement.items() if found["problem"]}


def serve_callers(workers: Mapping[str, Worker], settings: Settings) -> list[dict[str, Any]]:
    """Requests of ten passages from 4 and from 16 callers at once."""
    texts = texts_for(settings.folder(CONCURRENCY.model))
    rows = []
    for callers in (4, 16):
        requests = [
            texts.workload("request", 10, mean=20 if settings.smoke else 80, spread=0.45).pairs
            for _ in range(max(8, callers))
        ]
        served: dict[str, list[dict[str, Any]]] = {
            name: [] for name in CONCURRENCY.peers if name in workers
        }
        for _ in range(settings.rounds):
            for name, rounds in served.items():
                rounds.append(workers[name].serve_many(requests, callers))
        for name, rounds in served.items():
            latencies = [latency for one in rounds for latency in one["latencies"]]
            rows.append(
                {
                    "callers": callers,
                    "peer": name,
                    "pairs_per_second": 10
                    * statistics.median(len(one["latencies"]) / one["seconds"] for one in rounds),
                    "p50": quantile(latencies, 0.5) if latencies else None,
                    "p95": quantile(latencies, 0.95) if latencies else None,
                    "requests": len(requests) * settings.rounds,
                    "wrong": sum(one["wrong"] for one in rounds),
                    "failed_callers": sum(one["failed"] for one in rounds),
                    "problem": next((one["problem"] for one in rounds if one["problem"]), None),
                }
            )
    return rows


def start_cold(settings: Settings) -> dict[str, dict[str, Any]]:
    """Fresh processes up to the first score; medians, files in the system's cache."""
    names = settings.wanted(COLD_STARTERS)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(1 if settings.smoke else settings.rounds):
        for name in names:
            begin = time.perf_counter()
            steps = run_json("benchmarks.worker", name, str(settings.folder("base")))
            runs[name].append(steps | {"total": time.perf_counter() - begin})
    return {
        name: {step: statistics.median(run[step] for run in of) for step in of[0]}
        for name, of in runs.items()
    }


def run_json(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as its last line, run in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


if __name__ == "__main__":
    main()
