"""The benchmarks of quality, evidence and held-out questions count as can be worked out by hand."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import beir_folders, evidence, held_out, quality
from bge_rerank_integrations.evaluate import evaluate, read_beir
from tests.evaluate.data import helped, hurt, stated
from tests.fakes import StatedScorer, WordOverlapScorer


def test_a_data_set_has_a_row_for_each_model() -> None:
    scorers = {"words": WordOverlapScorer(), "stated": WordOverlapScorer("b")}
    helps = evaluate([helped(n) for n in range(12)], scorers, resamples=500, title="one")
    harms = evaluate([hurt(n) for n in range(12)], scorers, resamples=500, title="two")
    rows = quality.as_markdown([helps, harms], argparse.Namespace(depth=50)).splitlines()
    assert rows[2].split(" | ")[0:2] == ["| data set", "questions, recall of the candidates"]
    assert rows[4] == "| one | 12, 1.000 | as they came | 0.500 | |"
    assert rows[5] == "| | | words | **1.000** | +0.500 [+0.500, +0.500], p = 0.004 |"
    assert rows[7] == "| two | 12, 1.000 | as they came | 1.000 | |"
    assert rows[8] == "| | | words | 0.631 | -0.369 [-0.369, -0.369], p = 0.004 |"


def lines(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_marked_sentences_are_found_in_both_layouts(tmp_path: Path) -> None:
    abstract = ["Cats sleep.", "A red fox barks.", "Rain fell."]
    science, sentences = tmp_path / "science", tmp_path / "sentences"
    science.mkdir()
    sentences.mkdir()
    lines(science / "corpus.jsonl", [{"doc_id": 7, "title": "t", "abstract": abstract}])
    marked = {"7": [{"sentences": [1], "label": "SUPPORT"}, {"sentences": [2]}]}
    claims = [{"id": 1, "claim": "red fox", "evidence": marked}]
    lines(science / "claims_dev.jsonl", [*claims, {"id": 2, "claim": "x", "evidence": {}}])
    ((question, passage, spans),) = evidence.read_questions(science)
    assert (question, passage) == ("red fox", "Cats sleep. A red fox barks. Rain fell.")
    assert [passage[a:b] for a, b in spans] == abstract[1:]

    chinese = [{"id": f"0-1-{n}", "text": text} for n, text in enumerate(["猫睡觉。", "狐狸叫。"])]
    lines(sentences / "corpus.jsonl", [*chinese, {"id": "0-2-0", "text": "Alone."}])
    lines(sentences / "queries.jsonl", [{"id": "q", "text": "狐狸"}, {"id": "r", "text": "alone"}])
    (sentences / "qrels.tsv").write_text("q\t0-1-1\t1\nr\t0-2-0\t1\n", encoding="utf-8")
    ((_, passage, spans),) = evidence.read_questions(sentences)
    assert passage == "猫睡觉。狐狸叫。"
    assert [passage[a:b] for a, b in spans] == ["狐狸叫。"]


def test_a_hit_is_a_sentence_that_overlaps_a_marked_one() -> None:
    passage = "A dog. A red fox. Rain."
    questions = [("red fox", passage, [(7, 17)]), ("red fox", passage, [(0, 6), (18, 23)])]
    cells = evidence.row("set", "words", WordOverlapScorer(), questions).split(" | ")
    assert cells[:4] == ["| set", "words", "2", "3.0"]
    # found in one of two; the first sentence is right in the other; by chance 1/3 and 2/3
    assert cells[4].startswith("50% [")
    assert (cells[5], cells[6]) == ("50%", "50% |")


def test_what_holds_for_every_question_holds_for_those_held_out() -> None:
    random = np.random.default_rng(0)
    queries = [
        stated(n, *np.round(random.normal(0, 0.5, 5), 3).tolist(), 4 + n / 100, relevant=[5])
        for n in range(60)
    ]
    scores = [StatedScorer().score([("", t) for t in q.candidates.values()]) for q in queries]
    count, covers, depth, top_n, threshold, error, _, bias, target, gap = held_out.row(
        queries, scores
    )
    assert (count, covers, depth, top_n) == ("60, 6", "1.00 / 1.00", "1.000", "1.000")
    assert 0.9 < float(threshold) <= 1
    assert float(error.split(" / ")[0]) < 0.02
    assert abs(float(bias)) < 0.02
    recall, kept = target.split(" / ")
    assert 0.9 < float(recall) <= 1
    assert 14 <= int(kept.rstrip("%")) <= 18, "one of six"
    assert gap == "1.0 results: 1.000 / 1.000"


def test_the_recall_of_a_question_is_that_of_a_threshold_of_the_others() -> None:
    scores = [np.array([float(n), n - 0.5, -5.0], dtype=np.float32) for n in range(20)]
    relevant = [np.array([True, False, False])] * 20
    # 19 others allow the loss of none, so only the question of the lowest score loses its passage;
    # of the others, 20 - 1 keep two passages of three, and the question of 0 none
    assert held_out.recalled(scores, relevant) == "0.950 / 63%"
    assert held_out.recalled(scores[:19], relevant[:19]) == "too few questions"


def test_coverage_is_near_95_of_100_for_plain_differences() -> None:
    gains = np.random.default_rng(1).normal(0.1, 0.3, 5000)
    assert 0.92 <= float(held_out.coverage(gains, 50)) <= 0.98
    assert held_out.coverage(np.append(np.zeros(95), np.ones(5)), 20) == "mostly none given"


def test_a_calibration_on_unlike_scores_is_marked() -> None:
    random = np.random.default_rng(0)
    scores = [random.normal(size=10).astype(np.float32) for _ in range(50)]
    relevant = [random.random(10) < 1 / (1 + np.exp(-2 * raw)) for raw in scores]
    own = held_out.fit(scores, relevant, range(50))
    assert float(held_out.carried(own, scores, relevant)) < 0.06
    shifted = [raw + 2 for raw in scores]
    found = held_out.carried(own, shifted, relevant)
    assert found.startswith("**")
    assert float(found.strip("*")) > 0.2


@pytest.mark.parametrize(("said", "error"), [([0.05, 0.95], 0.05), ([0.2, 0.7], 0.25)])
def test_the_calibration_error_is_the_mean_distance_of_the_bins(
    said: list[float], error: float
) -> None:
    assert held_out.expected_error(np.array(said), np.array([False, True])) == pytest.approx(error)


def test_scores_are_kept_for_the_next_run_and_for_another_depth(tmp_path: Path) -> None:
    queries = [stated(n, n + 0.25, n + 0.5, n + 0.75) for n in range(30)]
    shallow = [replace(q, candidates=dict(list(q.candidates.items())[:2])) for q in queries]
    first, second = StatedScorer(), StatedScorer()
    quality.score_all(first, shallow, tmp_path, "two")
    known = quality.score_all(second, queries, tmp_path, "three")
    assert [sum(map(len, scorer.asked)) for scorer in (first, second)] == [60, 30]
    pairs = [(queries[7].text, text) for text in queries[7].candidates.values()]
    assert known.score(pairs).tolist() == [7.25, 7.5, 7.75]


CACM = """.I 1
.T
Preliminary Report
.B
CACM December, 1958
.A
Perlis, A. J.
.I 2
.T
Extraction of Roots
.W
Roots are extracted
by subtraction.
.K
square root
"""
TOPICS = """<DOC>
<DOCNO> 1 </DOCNO>

 How are roots
 extracted?
</DOC>
<DOC>
<DOCNO> 2 </DOCNO>
 Nobody judged this.
</DOC>
"""


def test_smart_documents_with_trec_topics_become_a_beir_folder(tmp_path: Path) -> None:
    names = ("cacm.all", "topics.txt", "qrels.txt")
    documents, topics, qrels = (tmp_path / name for name in names)
    documents.write_text(CACM)
    topics.write_text(TOPICS)
    qrels.write_text("1 Q0 CACM-2 1\n")
    given = ["--documents", str(documents), "--topics", str(topics), "--qrels", str(qrels)]
    beir_folders.main([str(tmp_path / "out"), *given])
    (query,) = read_beir(tmp_path / "out", depth=100)
    assert (query.id, query.text) == ("1", "How are roots extracted?")
    assert query.candidates == {"CACM-2": "Extraction of Roots Roots are extracted by subtraction."}
    assert query.grades == {"CACM-2": 1}


def test_trec_documents_and_topics_are_read_without_tags() -> None:
    documents = "<DOC>\n<DOCNO>1</DOCNO>\ncompact\nmemories\n</DOC>\n"
    assert beir_folders.read_documents(documents) == {"1": "compact memories"}
    topics = "<top>\n<num>7</num><title>\nMEASUREMENT OF LIQUIDS\n</title>\n</top>\n"
    assert beir_folders.read_trec(topics) == {"7": "MEASUREMENT OF LIQUIDS"}


def test_hits_become_a_beir_folder_with_repaired_texts(tmp_path: Path) -> None:
    hits = [
        {"content": "Add \u00c2\u00bc cup.", "qid": 5, "docid": "b", "rank": 1, "score": 2.5},
        {"content": "50\u00b0, caf\u00e9.", "qid": 5, "docid": "a", "rank": 2, "score": 1.5},
    ]
    (tmp_path / "hits.json").write_text(json.dumps([{"query": "how much", "hits": hits}]))
    (tmp_path / "qrels.txt").write_text("5 0 a 3\n5 0 unseen 1\n6 0 a 1\n")
    given = ["--hits", str(tmp_path / "hits.json"), "--qrels", str(tmp_path / "qrels.txt")]
    beir_folders.main([str(tmp_path / "out"), *given])
    (query,) = read_beir(tmp_path / "out", depth=100)
    assert dict(query.candidates) == {"b": "Add \u00bc cup.", "a": "50\u00b0, caf\u00e9."}
    assert query.grades == {"a": 3, "unseen": 1}
