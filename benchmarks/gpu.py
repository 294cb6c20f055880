"""Everything about one CUDA device, in less than nine minutes: `make gpu-check`.

    python -m benchmarks.gpu                     bge-reranker-base's shape
    python -m benchmarks.gpu --model large
    python -m benchmarks.gpu --smoke --device cpu     to try the program itself: tiny, not stored

First it runs `tests/gpu`, then the self-test of each attention with its time, then the race. Every
contender runs in a process of its own: pairs per second and share of the device's fastest matrix
product on 1000 passages, latency of requests of 50, peak memory, and the rounding error against
sentence-transformers in float32. No text comes twice, so nobody's cache helps. Contenders for whom
no time is left are named. It prints tables and our plan, and writes JSON beside the CPU's results.

It ends with code 1 if a test fails or an attention gives wrong numbers, and with code 2 where there
is no CUDA device. No GPU has run it yet: `--smoke --device cpu` has.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import torch

from benchmarks.attention import try_attentions
from benchmarks.measures import order_agreement, quantile
from benchmarks.models import DEFAULT_CACHE, SHAPES, build_model, model_flops, read_shape
from benchmarks.peers import Pair, Score
from benchmarks.report import describe_machine, markdown_table
from benchmarks.results import RESULTS
from benchmarks.worker import silence
from benchmarks.workloads import texts_for
from bge_rerank_integrations.local.torch_backend.cuda_attention import LARGEST_ERROR

SECONDS = 510
"""For everything: less than nine minutes, with the time that the last process takes to end."""
TEST_SECONDS = 180
CONTENDER_SECONDS = 60
"""The most that one contender may take, loading included."""

Say = Callable[[], list[str]]
"""What a contender says of itself when it is done."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is scored; and for how long, in seconds, requests are repeated."""

    passages: int
    tokens: int
    requests: int
    warm_up: int
    seconds: float


FULL = Sizes(passages=1000, tokens=160, requests=200, warm_up=20, seconds=10)
SMOKE = Sizes(passages=8, tokens=20, requests=3, warm_up=2, seconds=1)


def ours(options: dict[str, Any], folder: Path, device: str) -> tuple[Score, Say]:
    """Ours, on this device; the options of CUDA alone are left out elsewhere."""
    from bge_rerank_integrations import load_scorer

    if not device.startswith("cuda"):
        options = {name: value for name, value in options.items() if name != "attention"}
    scorer = load_scorer(str(folder), device=device, **options)

    def score(pairs: Sequence[Pair]) -> Any:
        return scorer.score(list(pairs)).astype(np.float64)

    return score, lambda: str(scorer.plan).splitlines()


def ours_on_all(folder: Path, device: str) -> tuple[Score, Say]:
    """Ours, on every device of this kind."""
    from bge_rerank_integrations import load_scorer

    count = torch.cuda.device_count() if device.startswith("cuda") else 2
    if device.startswith("cuda") and count == 1:
        raise SystemExit("there is one device")
    devices = [f"cuda:{number}" if device.startswith("cuda") else device for number in range(count)]
    scorer = load_scorer(str(folder), device=devices)

    def score(pairs: Sequence[Pair]) -> Any:
        return scorer.score(list(pairs)).astype(np.float64)

    return score, lambda: str(scorer.plan).splitlines()


def sentence_transformers(dtype: torch.dtype, folder: Path, device: str) -> tuple[Score, Say]:
    """`CrossEncoder.predict`; float32 is its default."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder),
        device=device,
        activation_fn=torch.nn.Identity(),
        model_kwargs={"dtype": dtype},
    )
    return lambda pairs: np.asarray(model.predict(list(pairs)), np.float64), list


def flag_embedding(dtype: torch.dtype, folder: Path, device: str) -> tuple[Score, Say]:
    """`FlagReranker.compute_score`; float32 is its default."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), use_fp16=dtype == torch.float16, devices=[device])

    def score(pairs: Sequence[Pair]) -> Any:
        return np.asarray(model.compute_score([list(pair) for pair in pairs]), np.float64)

    return score, list


REFERENCE = "sentence-transformers fp32"
CONTENDERS: dict[str, Callable[[Path, str], tuple[Score, Say]]] = {
    REFERENCE: partial(sentence_transformers, torch.float32),
    "ours (auto: fp16)": partial(ours, {}),
    "sentence-transformers fp16": partial(sentence_transformers, torch.float16),
    "FlagEmbedding fp16": partial(flag_embedding, torch.float16),
    "ours varlen": partial(ours, {"attention": "varlen"}),
    "ours efficient": partial(ours, {"attention": "efficient"}),
    "ours fp32": partial(ours, {"precision": "fp32"}),
    "ours fp16-autocast": partial(ours, {"precision": "fp16-autocast"}),
    "ours (auto: fp16) on all devices": ours_on_all,
}
"""Those that matter most come first."""


def main() -> None:
    """Every contender, one after another; or one of them, in the process made for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SHAPES, default="base")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing is stored")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--contender", choices=CONTENDERS, help="this one alone, as JSON")
    asked = parser.parse_args()
    cuda = asked.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print(
            "no CUDA device here, so nothing was tested or measured: run make gpu-check on a "
            "machine where torch.cuda.is_available(); on a CPU: python -m benchmarks.race"
        )
        raise SystemExit(2)
    end = time.monotonic() + SECONDS
    model = "tiny" if asked.smoke else asked.model
    folder = build_model(asked.cache, model)
    if asked.contender is not None:
        silence()
        sizes = SMOKE if asked.smoke else FULL
        print(json.dumps(measure(CONTENDERS[asked.contender], folder, asked.device, sizes)))
        return
    tests = run_tests(end)
    print(f"tests/gpu: {tests}", flush=True)
    formats = {"fp32": torch.float32, "fp16": torch.float16}
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name(asked.device) if cuda else asked.device,
        "model": model,
        "tests": tests,
        "peak": {name: gemm_flops(dtype, asked.device) for name, dtype in formats.items()},
        "attention": try_attentions(
            read_shape(folder), asked.device, tokens=256 if asked.smoke else 16384
        ),
        "contenders": {},
        "left_out": {},
    }
    for name in CONTENDERS:
        found = run_contender(name, sys.argv[1:], end)
        kind = "contenders" if isinstance(found, dict) else "left_out"
        results[kind][name] = found
    report(results)
    if not asked.smoke:
        store(results, asked.out)
    if not passed(results):
        raise SystemExit(1)


def store(results: dict[str, Any], folder: Path) -> None:
    """Write the JSON, and print its name."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = results["device"].lower().replace(" ", "-")
    file = folder / f"{results['machine']['date'][:10]}-{slug}-{results['model']}.gpu.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(file)


def passed(results: dict[str, Any]) -> bool:
    """Whether no test failed and every attention that runs is right."""
    tests = results["tests"]
    ended = isinstance(tests, dict) and not tests["failed"]
    limits = {str(dtype).removeprefix("torch."): most for dtype, most in LARGEST_ERROR.items()}
    right = all(
        "problem" in row or row["error"] <= limits[name.split()[1]]
        for name, row in results["attention"].items()
    )
    return ended and right


def run_tests(end: float) -> dict[str, int] | str:
    """How many tests of tests/gpu passed, failed and were skipped, or why they did not end."""
    seconds = min(TEST_SECONDS, end - time.monotonic())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", f"--junitxml={file}"]
        try:
            subprocess.run(command, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"took longer than {seconds:.0f} s"
        if not file.exists():
            return "pytest did not start; see its output above"
        # pytest wrote it
        counts = next(ET.parse(file).getroot().iter("testsuite")).attrib  # noqa: S314
    failed = int(counts["failures"]) + int(counts["errors"])
    skipped = int(counts["skipped"])
    return {
        "passed": int(counts["tests"]) - failed - skipped,
        "failed": failed,
        "skipped": skipped,
    }


def run_contender(name: str, options: list[str], end: float) -> dict[str, Any] | str:
    """What it measured in a process of its own, or why it did not."""
    seconds = min(CONTENDER_SECONDS, end - time.monotonic())
    if seconds <= 0:
        return f"no time was left of {SECONDS} s"
    command = [sys.executable, "-m", "benchmarks.gpu", *options, "--contender", name]
    print(f"running {name}", flush=True)
    try:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:.0f} s"
    if done.returncode:
        return f"ended with code {done.returncode}; see its traceback above"
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(
    load: Callable[[Path, str], tuple[Score, Say]], folder: Path, device: str, sizes: Sizes
) -> dict[str, Any]:
    """Scores of a fixed request, pairs per second, latencies and peak memory."""
    texts = texts_for(folder)
    probe = texts.workload("probe", min(200, sizes.passages), mean=sizes.tokens // 2, spread=0.45)
    warm, *many = (
        texts.workload("many", sizes.passages, mean=sizes.tokens, spread=0.5) for _ in range(4)
    )
    number = min(50, sizes.passages)
    requests = [
        texts.workload("request", number, mean=3 * sizes.tokens // 4, spread=0.5).pairs
        for _ in range(sizes.warm_up + sizes.requests)
    ]
    score, say = load(folder, device)
    scores = score(probe.pairs)
    score(warm.pairs)
    for request in requests[: sizes.warm_up]:
        score(request)
    cuda = device.startswith("cuda")
    every = range(torch.cuda.device_count() if cuda else 0)
    for index in every:
        torch.cuda.reset_peak_memory_stats(index)
    seconds = [timed(score, workload.pairs) for workload in many]
    latencies: list[float] = []
    end = time.perf_counter() + sizes.seconds
    for request in requests[sizes.warm_up :]:
        latencies.append(timed(score, request))
        if time.perf_counter() > end:
            break
    rates = [
        (len(workload.pairs) / passed, model_flops(folder, workload.lengths) / passed)
        for workload, passed in zip(many, seconds, strict=True)
    ]
    return {
        "scores": scores.tolist(),
        "pairs_per_second": statistics.median(pairs for pairs, _ in rates),
        "flops": statistics.median(flops for _, flops in rates),
        "p50": quantile(latencies, 0.5),
        "p99": quantile(latencies, 0.99),
        "requests": len(latencies),
        "peak_memory": sum(torch.cuda.max_memory_allocated(i) for i in every) if cuda else None,
        "says": say(),
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
        # the number format the contender runs in: ours says it first in its plan
        half = "fp16" in (row["says"] or [name])[0]
        peak = results["peak"]["fp16" if half else "fp32"]
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
    tried = [
        [name, row.get("problem") or f"{row['error']:.1e}", f"{row.get('milliseconds', 0):.2f}"]
        for name, row in results["attention"].items()
    ]
    print(markdown_table(["attention", "error", "ms a layer"], tried))
    columns = ["", "pairs/s", "of peak", "1x50 p50 ms", "1x50 p99 ms", "peak MB", "error", "tau"]
    rates = ", ".join(f"{kind} {rate / 1e12:.1f} TFLOP/s" for kind, rate in results["peak"].items())
    print(f"\n{results['device']}, {results['model']}; fastest product: {rates}\n")
    print(markdown_table(columns, body))
    for name, why in results["left_out"].items():
        print(f"{name}: {why}")
    for name, row in measured.items():
        if row["says"]:
            print("\n".join([f"\n{name}:", *row["says"]]))


if __name__ == "__main__":
    main()
