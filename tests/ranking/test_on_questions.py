"""How often the sentence chosen is the one that people marked, on questions over Wikipedia."""

import csv
import json
from collections import defaultdict
from pathlib import Path

from bge_rerank_integrations import load_reranker

CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


def questions() -> list[tuple[str, str, int, int]]:
    """Question, paragraph, and where the sentence that holds the answer lies in it."""
    paragraphs: dict[str, list[str]] = defaultdict(list)
    for row in _rows("corpus.jsonl"):
        paragraphs[row["id"].rpartition("-")[0]].append(row["text"].strip())
    texts = {row["id"]: row["text"] for row in _rows("queries.jsonl")}
    found = []
    with (CORPUS / "qrels.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            paragraph, _, number = row["corpus-id"].rpartition("-")
            parts = paragraphs[paragraph]
            begin = sum(len(part) + 1 for part in parts[: int(number)])
            end = begin + len(parts[int(number)])
            found.append((texts[row["query-id"]], " ".join(parts), begin, end))
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with (CORPUS / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_evidence_is_mostly_the_sentence_that_people_marked() -> None:
    reranker = load_reranker("offline", explain=True)
    asked = questions()[::4]
    hits, chance = 0, 0.0
    for question, paragraph, begin, end in asked:
        (result,) = reranker.rerank(question, [paragraph])
        assert result.evidence is not None
        hits += result.evidence.start < end and result.evidence.end > begin
        chance += (end - begin) / len(paragraph)
    assert len(asked) == 25
    assert chance / 25 < 0.35
    assert hits >= 18, "docs/scores.md has the share of more questions"
