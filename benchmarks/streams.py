"""Whole batches on each core against cores that share every product: the same scorer both ways.

python -m benchmarks.streams

Turns are interleaved in one process, and medians printed. Needs two to four threads; the model of
bge-reranker-base's shape is built if it is not there.
"""

import argparse
import statistics
import time

from benchmarks.models import DEFAULT_CACHE, build_model
from benchmarks.workloads import Passages, texts_for
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.scorer import LocalScorer
from bge_rerank_integrations.types import Precision

TURNS = 6
FORMATS: tuple[Precision, ...] = ("fp32", "bf16")


def without_streams(scorer: LocalScorer) -> LocalScorer:
    """The same scorer, for which every core works on every product."""
    engine = scorer._engine  # noqa: SLF001 - no option turns this off
    assert isinstance(engine, Engine)
    scorer._engine = Engine(  # noqa: SLF001
        engine.model, engine.fingerprint, engine.tokenizer, engine.forward
    )
    return scorer


def main() -> None:
    """A line for each number format and length of passage."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.streams", description=str(__doc__).partition("\n")[0]
    ).parse_args()
    folder = build_model(DEFAULT_CACHE.expanduser(), "base")
    texts = texts_for(folder)
    for precision in FORMATS:
        side_by_side = load_scorer(str(folder), precision=precision, device="cpu")
        together = without_streams(load_scorer(str(folder), precision=precision, device="cpu"))
        for passages in (Passages(60, 80), Passages(18, 260)):
            pairs = passages.draw(texts).pairs
            seconds: dict[str, list[float]] = {"side by side": [], "together": []}
            for _ in range(TURNS):
                for name, scorer in (("side by side", side_by_side), ("together", together)):
                    begin = time.perf_counter()
                    scorer.score(pairs)
                    seconds[name].append(time.perf_counter() - begin)
            one, other = (statistics.median(found) for found in seconds.values())
            print(
                f"{precision}, {passages.count} passages of about {passages.mean} tokens: "
                f"{one:.2f} s side by side, {other:.2f} s together, {other / one:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
