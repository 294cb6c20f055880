"""What a cheap reranker before an expensive one saves on judged data: pairs to score, and time.

    python -m benchmarks.cascade FOLDER ... --out cascade.md      a row for each data set

A cheap model keeps `keep` of the candidates for the expensive one. Quality is counted from the
scores that benchmarks.quality keeps in --scores; missing ones are computed. Time is processor
time, for both ways in turns on the first --timed questions of each data set: it does not count
what other programs do meanwhile.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.models import DEFAULT_CACHE
from benchmarks.quality import MINILM, load_model, score_all
from bge_rerank_integrations import Reranker, Scorer
from bge_rerank_integrations.evaluate import JudgedQuery, read_beir
from bge_rerank_integrations.evaluate.measures import measured, parse_measures
from bge_rerank_integrations.evaluate.statistics import Array, Resampling

MEASURE = "nDCG@10"
KEEPS = (10, 20)
RESAMPLES = 10_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, time, and print or write the table."""
    asked = read_arguments(arguments)
    cheap, expensive = load_model(asked.cheap, asked.cheap_max_length), load_model(asked.expensive)
    keeps = asked.keep or KEEPS
    reading = f", reading {asked.cheap_max_length} tokens," if asked.cheap_max_length else ""
    about = (
        f"{asked.cheap}{reading} leaves `keep` of at most {asked.depth} candidates to "
        f"{asked.expensive}. The difference in {MEASURE} is to {asked.expensive} over all of them, "
        f"with its 95% bootstrap interval over the questions, {RESAMPLES:,} resamples. "
        f"Pairs are those that {asked.expensive} does not score. Time is the processor time of "
        f"both over that of {asked.expensive} alone, taking turns: median and range of the first "
        f"{asked.timed} questions."
    )
    columns = (
        *("data set", "questions", f"{MEASURE}, {asked.expensive}", "keep", f"{MEASURE}, both"),
        *("difference", "pairs spared", "time"),
    )
    lines = [about, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for folder in asked.folders:
        queries = read_beir(folder, folder / asked.run, depth=asked.depth)[: asked.queries]
        known = {
            scorer: score_all(scorer, queries, asked.scores.expanduser(), folder.name)
            for scorer in (cheap, expensive)
        }
        whole = values(queries, partial(order, known[expensive]))
        times = time_shares(queries[: asked.timed], cheap, expensive, keeps)
        for keep, shares in zip(keeps, times, strict=True):
            found = values(queries, partial(order_in_turn, known[cheap], keep, known[expensive]))
            lost = Resampling(RESAMPLES, seed=0).differences(whole[:, None], found[:, None])[0]
            cells = (
                *(folder.name, str(len(queries)), f"{whole.mean():.3f}", str(keep)),
                f"{found.mean():.3f}",
                str(lost),
                f"{spared(queries, keep):.0%}",
                f"{median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
            )
            lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    if asked.out is None:
        print(table)
    else:
        asked.out.write_text(table, encoding="utf-8")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="data sets")
    parser.add_argument(
        "--run", default="run.bm25.top100.trec", help="each one's file of candidates"
    )
    parser.add_argument("--cheap", default=MINILM, help="hub id, folder or 'offline-embedder'")
    parser.add_argument("--cheap-max-length", type=int, help="how many tokens that one reads")
    parser.add_argument("--expensive", default="offline", help="the same; the scores are its own")
    parser.add_argument("--keep", type=int, action="append", help=f"repeatable; {KEEPS} if none")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--queries", type=int, help="only the first N of each data set")
    parser.add_argument("--timed", type=int, default=3, help="questions to measure time on")
    parser.add_argument("--scores", type=Path, default=DEFAULT_CACHE / "quality")
    parser.add_argument("--out", type=Path, help="write the table here")
    return parser.parse_args(arguments)


Order = Callable[[JudgedQuery], list[int]]
"""Positions of a question's candidates, best first; candidates that are left out are not found."""


def order(scorer: Scorer, query: JudgedQuery) -> list[int]:
    """All candidates, as the scorer ranks them."""
    passages = query.candidates.values()
    return [result.index for result in Reranker(scorer).rerank(query.text, passages)]


def order_in_turn(cheap: Scorer, keep: int, expensive: Scorer, query: JudgedQuery) -> list[int]:
    """The `keep` candidates that `cheap` ranks highest, as `expensive` ranks them."""
    if len(query.candidates) <= keep:
        return order(expensive, query)
    passages = list(query.candidates.values())
    kept = sorted(order(cheap, query)[:keep])  # equal scores keep the retriever's order
    results = Reranker(expensive).rerank(query.text, [passages[index] for index in kept])
    return [kept[result.index] for result in results]


def values(queries: Sequence[JudgedQuery], order: Order) -> Array:
    """Each question's measure."""
    orders = [np.array(order(query), int) for query in queries]
    return measured(queries, orders, parse_measures([MEASURE]))[:, 0]


def spared(queries: Sequence[JudgedQuery], keep: int) -> float:
    """The share of pairs that the expensive model does not score."""
    counts = [len(query.candidates) for query in queries]
    return 1 - sum(min(keep, count) for count in counts) / sum(counts)


def time_shares(
    queries: Sequence[JudgedQuery], cheap: Scorer, expensive: Scorer, keeps: Sequence[int]
) -> list[list[float]]:
    """For each `keep` and question the processor time of both over that of the expensive model."""
    for scorer in (cheap, expensive):  # what is done once does not count
        scorer.score([(queries[0].text, text) for text in list(queries[0].candidates.values())[:2]])
    shares: list[list[float]] = [[] for _ in keeps]
    for query in queries:
        whole = processor_seconds(partial(order, expensive), query)
        for row, keep in zip(shares, keeps, strict=True):
            row.append(
                processor_seconds(partial(order_in_turn, cheap, keep, expensive), query) / whole
            )
    return shares


def processor_seconds(order: Order, query: JudgedQuery) -> float:
    """Of all threads of this process."""
    begin = time.process_time()
    order(query)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
