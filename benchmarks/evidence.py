"""How often the evidence of a passage is a sentence that people marked, on data sets in folders.

    python -m benchmarks.evidence FOLDER ... --model offline --queries 200

A folder is a release of SciFact (claims_dev.jsonl, and corpus.jsonl with abstracts as lists), or
a BEIR folder of sentences whose ids are PARAGRAPH-NUMBER, such as XQuAD-R. For each question with
each of its passages the program asks for the evidence, and counts a hit where that overlaps a
marked sentence.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import regex
from scipy import stats
from tqdm import tqdm

from benchmarks.quality import load_model
from bge_rerank_integrations import Reranker
from bge_rerank_integrations.evaluate.judged import read_grades
from bge_rerank_integrations.ranking.sentences import Span, split_sentences

Question = tuple[str, str, list[Span]]
"""The question, a passage, and the spans of its marked sentences."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each folder and model."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--queries", type=int, help="only the first N questions of each folder")
    asked = parser.parse_args(arguments)
    print(
        "| data set | model | passages | sentences each | marked sentence found | "
        "first sentence | by chance |\n" + "|---" * 7 + "|"
    )
    for folder in asked.folders:
        questions = read_questions(folder)[: asked.queries]
        for model in asked.model:
            print(row(folder.name, Path(model).name, load_model(model), questions), flush=True)


def read_questions(folder: Path) -> list[Question]:
    """The questions of either layout; passages of one sentence are left out."""
    read = scifact if (folder / "claims_dev.jsonl").is_file() else paragraphs
    return [found for found in read(folder) if len(sentences(found[1])) > 1]


def sentences(text: str) -> list[Span]:
    """The sentences that can be evidence: those with a letter or digit."""
    spans = split_sentences(text)
    return [(start, end) for start, end in spans if any(map(str.isalnum, text[start:end]))]


def scifact(folder: Path) -> Iterator[Question]:
    """Claims with the abstracts that support or refute them."""
    abstracts = {str(line["doc_id"]): line["abstract"] for line in lines(folder / "corpus.jsonl")}
    for claim in lines(folder / "claims_dev.jsonl"):
        for document, marked in claim["evidence"].items():
            numbers = {number for one in marked for number in one["sentences"]}
            yield claim["claim"], *joined(abstracts[document], numbers)


def paragraphs(folder: Path) -> Iterator[Question]:
    """Questions with the paragraphs that hold their sentences."""
    parts: dict[str, list[str]] = defaultdict(list)
    for line in lines(folder / "corpus.jsonl"):
        parts[line["id"].rpartition("-")[0]].append(line["text"].strip())
    grades = read_grades(folder / "qrels.tsv")
    for query in lines(folder / "queries.jsonl"):
        marked: dict[str, set[int]] = defaultdict(set)
        for key in grades.get(query["id"], {}):
            paragraph, _, number = key.rpartition("-")
            marked[paragraph].add(int(number))
        for paragraph, numbers in marked.items():
            yield query["text"], *joined(parts[paragraph], numbers)


def joined(parts: Sequence[str], marked: set[int]) -> tuple[str, list[Span]]:
    """The passage, and where the marked sentences are in it; Chinese is joined without blanks."""
    text, spans = "", []
    for number, sentence in enumerate(parts):
        text += " " if text and not regex.search(r"\p{Han}", sentence) else ""
        spans += [(len(text), len(text) + len(sentence))] if number in marked else []
        text += sentence
    return text, spans


def lines(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    with file.open(encoding="utf-8") as rows:
        return [json.loads(row) for row in rows]


def row(name: str, model: str, scorer: Any, questions: Sequence[Question]) -> str:
    """A row of the table, with the 95% interval of Clopper and Pearson."""
    reranker = Reranker(scorer, explain=True)
    hits, first, chance, number = 0, 0, 0.0, 0
    for question, passage, marked in tqdm(questions, desc=f"{model} on {name}"):
        (result,) = reranker.rerank(question, [passage])
        spans = sentences(passage)
        right = [any(a < end and b > start for start, end in marked) for a, b in spans]
        number += len(spans)
        found = result.evidence
        hits += found is not None and right[spans.index((found.start, found.end))]
        first += right[0]
        chance += sum(right) / len(right)
    total = len(questions)
    interval = stats.binomtest(hits, total).proportion_ci()
    return (
        f"| {name} | {model} | {total} | {number / total:.1f} | {hits / total:.0%} "
        f"[{interval.low:.0%}, {interval.high:.0%}] | {first / total:.0%} | {chance / total:.0%} |"
    )


if __name__ == "__main__":
    main()
