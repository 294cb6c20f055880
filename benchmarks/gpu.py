"""The race on one CUDA device, in under ten minutes.

    python -m benchmarks.gpu                     bge-reranker-base's shape
    python -m benchmarks.gpu --model large

Every contender runs alone in a process of its own: pairs per second and share of the device's
fastest matrix product on 1000 passages, latency of requests of 50, peak memory, and the rounding
error against sentence-transformers in float32. Prints a table and writes JSON beside the CPU's
results. Where there is no CUDA device it says so and ends with code 2.

Not run yet on a GPU by its authors: what was tried is `--device cpu --model tiny`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measures import encoder_flops, order_agreement, quantile
from benchmarks.models import DEFAULT_CACHE, SHAPES, build_model, read_shape
from benchmarks.peers import Score
from benchmarks.report import describe_machine, markdown_table
from benchmarks.worker import silence
from benchmarks.workloads import texts_for

SECONDS = 75
"""The most that one contender may take, loading included: six of them and the model fit in ten
minutes."""


def ours(precision: Any, folder: Path, device: str) -> Score:
    """Ours, on this device."""
    from bge_rerank_integrations import load_scorer

    scorer = load_scorer(str(folder), device=device, precision=precision)
    print(scorer.plan, file=sys.stderr)
    return lambda pairs: scorer.score(list(pairs)).astype(np.float64)


def sentence_transformers(dtype: torch.dtype, folder: Path, device: str) -> Score:
    """`CrossEncoder.predict`; float32 is its default."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder),
        device=device,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": dtype},
    )
    return lambda pairs: np.asarray(model.predict(list(pairs)), np.float64)


def flag_embedding(dtype: torch.dtype, folder: Path, device: str) -> Score:
    """`FlagReranker.compute_score`; float32 is its default."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), use_fp16=dtype == torch.float16, devices=[device])
    return lambda pairs: np.asarray(model.compute_score([list(pair) for pair in pairs]), np.float64)


REFERENCE = "sentence-transformers fp32"
CONTENDERS: dict[str, Callable[[Path, str], Score]] = {
    "ours (auto: fp16)": partial(ours, "auto"),
    REFERENCE: partial(sentence_transformers, torch.float32),
    "sentence-transformers fp16": partial(sentence_transformers, torch.float16),
    "FlagEmbedding fp16": partial(flag_embedding, torch.float16),
    "FlagEmbedding fp32": partial(flag_embedding, torch.float32),
    "ours fp32": partial(ours, "fp32"),
}


def main() -> None:
    """Every contender, one after another; or one of them, in the process made for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="base")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--contender", choices=CONTENDERS, help="this one alone, as JSON")
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device here, nothing measured; on the CPU: python -m benchmarks.race")
        raise SystemExit(2)
    folder = build_model(asked.cache, asked.model)
    if asked.contender is not None:
        silence()
        print(json.dumps(measure(CONTENDERS[asked.contender], folder, asked.device)))
        return
    cuda = asked.device.startswith("cuda")
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name(asked.device) if cuda else asked.device,
        "model": asked.model,
        "peak": {
            "fp32": gemm_flops(torch.float32, asked.device),
            "fp16": gemm_flops(torch.float16, asked.device),
        },
        "contenders": {},
        "left_out": {},
    }
    for name in CONTENDERS:
        found = run_contender(name, sys.argv[1:])
        kind = "contenders" if isinstance(found, dict) else "left_out"
        results[kind][name] = found
    report(results)
    asked.out.mkdir(parents=True, exist_ok=True)
    slug = results["device"].lower().replace(" ", "-")
    file = asked.out / f"{results['machine']['date'][:10]}-{slug}-{asked.model}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(file)


def run_contender(name: str, options: list[str]) -> dict[str, Any] | str:
    """What it measured in a process of its own, or why it did not."""
    command = [sys.executable, "-m", "benchmarks.gpu", *options, "--contender", name]
    print(f"running {name}", flush=True)
    try:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {SECONDS} s"
    if done.returncode:
        return f"ended with code {done.returncode}; see its traceback above"
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(load: Callable[[Path, str], Score], folder: Path, device: str) -> dict[str, Any]:
    """Scores of a fixed request, pairs per second, latencies and peak memory."""
    texts = texts_for(folder)
    probe = texts.workload("probe", 200, mean=80, spread=0.45)
    many = texts.workload("many", 1000 if device != "cpu" else 20, mean=160, spread=0.5)
    requests = [texts.workload("request", 50, mean=120, spread=0.5).pairs for _ in range(20)]
    score = load(folder, device)
    scores = score(probe.pairs)
    for request in requests[:3]:
        score(request)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    throughput = [timed(score, many.pairs) for _ in range(3)]
    latencies: list[float] = []
    end = time.perf_counter() + 15
    while len(latencies) < 300 and (time.perf_counter() < end or len(latencies) < 5):
        latencies.append(timed(score, requests[len(latencies) % len(requests)]))
    shape = read_shape(folder)
    flops = encoder_flops(shape.hidden, shape.layers, shape.ffn, many.lengths)
    seconds = statistics.median(throughput)
    return {
        "scores": scores.tolist(),
        "pairs_per_second": len(many.pairs) / seconds,
        "flops": flops / seconds,
        "p50": quantile(latencies, 0.5),
        "p99": quantile(latencies, 0.99),
        "requests": len(latencies),
        "peak_memory": torch.cuda.max_memory_allocated(device) if device != "cpu" else None,
    }


def timed(score: Score, pairs: list[tuple[str, str]]) -> float:
    """Seconds to the scores; they come back as numpy arrays, so the device is done by then."""
    begin = time.perf_counter()
    score(pairs)
    return time.perf_counter() - begin


def gemm_flops(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product: what torch reaches here in this format."""
    size = 8192 if device != "cpu" else 256
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        (left @ right)[0, 0].item()  # reading a number waits for the device
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def report(results: dict[str, Any]) -> None:
    """Print the table; the scores, once compared, are dropped from the results."""
    measured = results["contenders"]
    scores = {name: np.asarray(row.pop("scores")) for name, row in measured.items()}
    body = []
    for name, row in measured.items():
        if REFERENCE in scores:
            row["largest_error"] = float(np.abs(scores[name] - scores[REFERENCE]).max())
            row["tau"] = order_agreement(scores[name], scores[REFERENCE])
        peak = results["peak"]["fp16" if "fp16" in name else "fp32"]
        memory = row["peak_memory"]
        body.append(
            [
                name,
                f"{row['pairs_per_second']:.0f}",
                f"{100 * row['flops'] / peak:.0f}%",
                f"{1000 * row['p50']:.1f}",
                f"{1000 * row['p99']:.1f}",
                "-" if memory is None else f"{memory / 1e6:.0f}",
                f"{row['largest_error']:.1e}" if "largest_error" in row else "-",
                f"{row['tau']:.4f}" if "tau" in row else "-",
            ]
        )
    columns = ["", "pairs/s", "of peak", "1x50 p50 ms", "1x50 p99 ms", "peak MB", "error", "tau"]
    rates = ", ".join(f"{kind} {rate / 1e12:.1f} TFLOP/s" for kind, rate in results["peak"].items())
    print(f"\n{results['device']}, {results['model']}; fastest product: {rates}\n")
    print(markdown_table(columns, body))
    for name, why in results["left_out"].items():
        print(f"{name}: {why}")


if __name__ == "__main__":
    main()
