"""Whether `draft="bf16"` gives float32's results, and how much processor time it saves.

    python -m benchmarks.draft DATA ... --train     agreement on judged data, with a trained model
    python -m benchmarks.draft --time               time, on bge-reranker-base's shape

A data set is a BEIR folder with a TREC run of candidates; if none is given, it is the examples'
corpus with candidates of BM25, which needs bm25s. No trained float32 cross-encoder can be
installed from a package, so `--train` makes one from all-MiniLM-L6-v2: each tenth question with a
relevant candidate and three others, and documents' titles with their own text and with another's.
The other questions are measured. Scores are kept in --cache, so a run that was stopped goes on.
Time is processor time in turns, which does not count other programs.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import DEFAULT_CACHE, MINI, build_model, model_folder
from benchmarks.quality import find_data_sets, score_all
from benchmarks.workloads import CORPUS, Passages, texts_for
from bge_rerank_integrations import Reranker, RerankResult, Scorer, load_reranker, load_scorer
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.evaluate import JudgedQuery, read_beir
from bge_rerank_integrations.wrappers.draft import DraftedScorer

TOP_N = 5
EPOCHS = 2
BATCH = 16
HARD = 3
"""Candidates that are not relevant, for each training question."""
TITLES = 60
"""Documents of each data set whose titles serve as questions."""

SUBSETS, SUBSET = 20, 60
"""So many draws of so many of each question's candidates, to see more places of the cut."""

Example = tuple[str, str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*", help="data sets, or folders of them")
    parser.add_argument("--run", default="run.bm25.top100.trec", help="each one's candidates")
    parser.add_argument("--questions", type=int, default=1000, help="how many are measured")
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--train", action="store_true", help="train the model unless it is there")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    asked = parser.parse_args(arguments)
    if not asked.time:
        folders = [found for given in asked.folders for found in find_data_sets(given, asked.run)]
        runs = {folder: folder / asked.run for folder in folders}
        if not folders:
            runs = {CORPUS: write_run(asked.cache.expanduser())}
        queries = [read_beir(folder, run, depth=100) for folder, run in runs.items()]
        model = model_folder(asked.cache, "cross-encoder")
        if asked.train and not model.is_dir():
            train(model, build_model(asked.cache, MINI), examples(list(runs), queries))
        measured = [one for some in queries for place, one in enumerate(some) if place % 10]
        random.Random(0).shuffle(measured)  # noqa: S311 - drawn for variety, not for secrecy
        print(agreement(model, measured[: asked.questions], asked))
    else:
        print(times(build_model(asked.cache, "base"), asked.turns))


def write_run(cache: Path) -> Path:
    """A TREC run of BM25 over the examples' corpus."""
    import bm25s

    corpus = list(read_rows(CORPUS / "corpus.jsonl"))
    queries = list(read_rows(CORPUS / "queries.jsonl"))
    words, asked = (
        bm25s.tokenize([row["text"] for row in rows], stopwords="en", show_progress=False)
        for rows in (corpus, queries)
    )
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    places, scores = index.retrieve(asked, k=100, show_progress=False)
    file = cache / "examples.trec"
    lines = [
        f"{query['id']} Q0 {corpus[place]['id']} {rank} {score} bm25\n"
        for query, found, values in zip(queries, places, scores, strict=True)
        for rank, (place, score) in enumerate(zip(found, values, strict=True), start=1)
    ]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def examples(folders: Sequence[Path], queries: Sequence[list[JudgedQuery]]) -> list[Example]:
    """Pairs with a label of 1 or 0."""
    chance = random.Random(0)  # noqa: S311 - drawn for variety, not for secrecy
    found: list[Example] = []
    for folder, some in zip(folders, queries, strict=True):
        for query in some[::10]:
            relevant = query.relevance
            texts = list(query.candidates.values())
            others = [text for text, good in zip(texts, relevant, strict=True) if not good]
            good = [text for text, good in zip(texts, relevant, strict=True) if good]
            found += [(query.text, text, 1.0) for text in good[:HARD]]
            hard = chance.sample(others[:30], min(HARD, len(others)))
            found += [(query.text, text, 0.0) for text in hard]
        rows = read_rows(folder / "corpus.jsonl")
        documents = [(row["title"], row["text"]) for row in rows if row["title"]]
        for title, text in chance.sample(documents, min(TITLES, len(documents))):
            found += [(title, text, 1.0), (title, chance.choice(documents)[1], 0.0)]
    return found


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """An object for each line of JSON."""
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def train(folder: Path, start: Path, pairs: list[Example]) -> None:
    """Train the model of the folder `start` on the pairs, and save it."""
    import shutil

    import torch
    from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model: Any = BertForSequenceClassification.from_pretrained(start)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    steps = EPOCHS * -(-len(pairs) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    losses: list[float] = []
    for epoch in range(EPOCHS):
        chance = random.Random(epoch)  # noqa: S311 - drawn for variety, not for secrecy
        # pairs of about equal length share a batch, so little is padded
        drawn = sorted(chance.sample(pairs, len(pairs)), key=lambda pair: len(pair[1]) // 200)
        batches = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
        for batch in chance.sample(batches, len(batches)):
            queries, passages, labels = zip(*batch, strict=True)
            given = tokenizer(
                list(queries),
                list(passages),
                truncation="only_second",
                max_length=96,
                padding=True,
                return_tensors="pt",
            )
            logits = model(**given).logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, torch.tensor(labels)
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if len(losses) % 5 == 0:
                print(f"step {len(losses)} of {steps}: {sum(losses[-5:]) / 5:.3f}", flush=True)
    partial = folder.with_suffix(".partial")
    model.save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(start / name, partial)
    partial.rename(folder)


def agreement(model: Path, queries: list[JudgedQuery], asked: argparse.Namespace) -> str:
    """How many questions have the results of float32, and how many pairs were scored twice."""
    exact, draft = (
        score_all(
            load_scorer(str(model), device="cpu", precision=precision, max_length=asked.max_length),
            queries,
            asked.cache.expanduser() / "quality",
            precision,
        )
        for precision in ("fp32", "bf16")
    )
    traces: list[RerankTrace] = []
    drafted = DraftedScorer(exact, draft)

    def is_same(top_n: int, query: str, texts: list[str], scorer: Scorer) -> bool:
        wanted = Reranker(exact, top_n=top_n).rerank(query, texts)
        found = Reranker(scorer, top_n=top_n, on_trace=traces.append).rerank(query, texts)
        return as_numbers(wanted) == as_numbers(found)

    asked_for = [(query.text, list(query.candidates.values())) for query in queries]
    same = sum(is_same(TOP_N, query, texts, drafted) for query, texts in asked_for)
    twice = sorted(trace.counts["rescored"] for trace in traces if "rescored" in trace.counts)
    pairs = sum(len(texts) for _, texts in asked_for)
    found = (
        f"{same} of {len(queries)} questions have float32's results; "
        f"{sum(twice) / pairs:.1%} of {pairs:,} pairs were scored twice, "
        f"{median(twice):.0f} per question (median), at most {twice[-1]}"
    )
    lines = [found]
    chance = random.Random(0)  # noqa: S311 - drawn for variety, not for secrecy
    for top_n in (1, 3, 5, 10):
        drawn = [
            (query, chance.sample(texts, min(SUBSET, len(texts))))
            for query, texts in asked_for
            for _ in range(SUBSETS)
        ]
        kept = sum(not is_same(top_n, query, texts, drafted) for query, texts in drawn)
        fresh = sum(
            not is_same(top_n, query, texts, DraftedScorer(exact, draft)) for query, texts in drawn
        )
        lines.append(
            f"top_n={top_n}, {len(drawn):,} draws of {SUBSET} candidates: {kept} results differ, "
            f"and {fresh} where nothing is known from earlier calls"
        )
    return "\n".join(lines)


def as_numbers(results: Sequence[RerankResult]) -> list[tuple[int, float]]:
    """Place in the list of candidates and raw score of each result."""
    return [(result.index, result.raw_score) for result in results]


def times(model: Path, turns: int) -> str:
    """Processor time of both ways in turns, on 100 passages of about 80 tokens."""
    texts = texts_for(model)
    traces: list[RerankTrace] = []
    exact = load_reranker(str(model), device="cpu", precision="fp32", top_n=TOP_N)
    drafted = load_reranker(
        str(model), device="cpu", draft="bf16", top_n=TOP_N, on_trace=traces.append
    )
    shares = []
    for turn in range(turns + 1):
        drawn = Passages(100, 80).draw(texts)
        seconds = []
        for reranker in (exact, drafted):
            begin = time.process_time()
            reranker.rerank(drawn.query, drawn.passages)
            seconds.append(time.process_time() - begin)
        if turn:  # the first warms up
            shares.append(seconds[1] / seconds[0])
            print(f"{seconds[0]:.2f} s, {seconds[1]:.2f} s, {traces[-1].counts}", flush=True)
    return (
        f"draft takes {median(shares):.2f} of float32's processor time "
        f"({min(shares):.2f} to {max(shares):.2f})"
    )


if __name__ == "__main__":
    main()
