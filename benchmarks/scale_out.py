"""What scaling out costs beside the scoring: planning, shards on Ray, requests to Ray Serve.

python -m benchmarks.scale_out

The scorer of the first two parts draws its scores, which takes next to no time, so that what is
left is ours and Ray's. Prints a line for each number; the ratios are in docs/scaling.md.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import serve

from bge_rerank_integrations import Pair, load_scorer
from bge_rerank_integrations.batch.run import rerank_files
from bge_rerank_integrations.batch.source import (
    Columns,
    cut_into_shards,
    fingerprint,
    read_layout,
)
from bge_rerank_integrations.local.tiny_encoder import build_tiny_encoder
from bge_rerank_integrations.serve.app import ServeSettings, rerank_app

SENTENCE = "the giant panda is a bear that lives in the mountains of China and eats bamboo"
WORDS = SENTENCE.split()


class Drawn:
    """Scores that take next to no time, and as much room as true ones."""

    name, scale = "drawn", "logit"

    def __init__(self) -> None:
        self._draw = np.random.default_rng(0)

    def score(self, pairs: list[Pair]) -> np.ndarray:
        return self._draw.normal(size=len(pairs)).astype(np.float32)


def write_pairs(file: Path, rows: int, *, words: int) -> None:
    """Pairs of so many words, a hundred to a query."""
    draw = np.random.default_rng(0).integers(len(WORDS), size=(1000, words))
    passages = [" ".join(WORDS[i] for i in row) for row in draw]
    numbers = range(rows)
    pq.write_table(
        pa.table(
            {
                "query_id": [n // 100 for n in numbers],
                "query": [f"what is panda {n // 100}?" for n in numbers],
                "passage": [passages[n % 1000] for n in numbers],
            }
        ),
        file,
    )


def tell(what: str, number: float, unit: str) -> None:
    """One line."""
    print(f"{what:<48} {number:>12,.3f} {unit}", flush=True)


def plan(folder: Path, rows: int) -> None:
    """The driver's own work, before any worker has any."""
    file = folder / "pairs.parquet"
    write_pairs(file, rows, words=100)
    began = time.perf_counter()
    layout, _ = read_layout([file], Columns())
    shards = cut_into_shards([file], layout, shard_rows=10_000)
    tell(f"plan {rows:,} pairs in {len(shards)} shards", time.perf_counter() - began, "s")
    began = time.perf_counter()
    fingerprint([file])
    size = file.stat().st_size / 1e9
    tell("fingerprint", size / (time.perf_counter() - began), "GB/s")


def shards(folder: Path, rows: int, shard_rows: int) -> None:
    """A whole run of instant scores: reading, ranking, writing, and Ray."""
    out = folder / f"out-{shard_rows}"
    report = rerank_files(folder / "pairs.parquet", out, load=Drawn, shard_rows=shard_rows, cpus=1)
    pairs_each_second = rows / report.seconds
    tell(f"{report.shards} shards of {shard_rows:,}", report.seconds, "s")
    tell("  pairs a second, scoring apart", pairs_each_second, "1/s")
    written = sum(file.stat().st_size for file in (out / "results").iterdir())
    tell("  written for a pair", written / rows, "bytes")


def in_turns(*calls: Callable[[], object], rounds: int = 30) -> list[float]:
    """The median time of each, taken in turns so that a busy moment hits all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def requests(port: int) -> None:
    """The same calls in this process and through our client to a served model."""
    local, remote = load_scorer("offline"), load_scorer(f"http://127.0.0.1:{port}")
    for passages in (1, 8, 64):
        pairs = [("what is a panda?", f"{SENTENCE} {n}") for n in range(passages)]
        here, there = in_turns(partial(local.score, pairs), partial(remote.score, pairs))
        tell(f"{passages} passages in this process", 1000 * here, "ms")
        tell(f"{passages} passages from Ray Serve", 1000 * there, "ms")
        tell("  the difference", 1000 * (there - here), "ms")


def devices(folder: Path) -> None:
    """A tiny model as one device and as two, whose work is next to nothing."""
    build_tiny_encoder(folder)
    pairs = [("what is a panda?", f"{SENTENCE} {n}") for n in range(256)]
    one = load_scorer(str(folder), device="cpu", max_batch_tokens=1024)
    two = load_scorer(str(folder), device=["cpu", "cpu"], max_batch_tokens=1024)
    alone, shared = in_turns(partial(one.score, pairs), partial(two.score, pairs))
    tell("256 pairs of a tiny model, one device", 1000 * alone, "ms")
    tell("  the same as two devices on the same cores", 1000 * shared, "ms")


def main() -> None:
    """Every part, one after the other."""
    tell("load of the machine", os.getloadavg()[0], "")
    rows = 200_000
    with tempfile.TemporaryDirectory() as name:
        plan(Path(name), rows)
        began = time.perf_counter()
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        tell("start Ray on this machine", time.perf_counter() - began, "s")
        for shard_rows in (1000, 10_000):
            shards(Path(name), rows, shard_rows)
        port = 8399
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        began = time.perf_counter()
        serve.run(rerank_app(ServeSettings(model="offline", cpus=2)))
        tell("start the served model", time.perf_counter() - began, "s")
        requests(port)
        serve.shutdown()
        ray.shutdown()
        tiny = Path(name) / "tiny"
        tiny.mkdir()
        devices(tiny)
    tell("load of the machine", os.getloadavg()[0], "")


if __name__ == "__main__":
    main()
