"""Files of judgements in which an id has blanks, or comes twice."""

import json
from pathlib import Path

import pytest

from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate import read_beir

CORPUS = {"user guide.pdf": "the guide", "guide.pdf": "another", "faq": "questions"}


def folder(
    where: Path,
    *,
    judgements: str,
    corpus: tuple[tuple[str, str], ...] = tuple(CORPUS.items()),
    queries: tuple[tuple[str, str], ...] = (("1", "how?"),),
) -> Path:
    for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in rows]
        (where / name).write_text("\n".join(lines), encoding="utf-8")
    (where / "qrels.tsv").write_text(judgements, encoding="utf-8")
    ranked = [f"1\tQ0\t{key}\t{n}\t{-n}\tbm25\n" for n, key in enumerate(CORPUS, start=1)]
    (where / "run.trec").write_text("".join(ranked), encoding="utf-8")
    return where


@pytest.mark.parametrize(
    "judgements",
    [
        "1\tuser guide.pdf\t1\n",
        "query-id\tcorpus-id\tscore\r\n1\tuser guide.pdf \t1\t\r\n",
        "1\t0\tuser guide.pdf\t1\n",
        "1\tQ0\tuser guide.pdf\t1\n",
    ],
    ids=repr,
)
def test_an_id_between_tabs_may_hold_blanks(tmp_path: Path, judgements: str) -> None:
    (query,) = read_beir(folder(tmp_path, judgements=judgements), depth=None)
    assert query.grades == {"user guide.pdf": 1}
    assert dict(query.candidates) == CORPUS


def test_after_beirs_header_four_fields_are_no_row_of_trec(tmp_path: Path) -> None:
    (query,) = read_beir(folder(tmp_path, judgements="1 0 faq 1\n"), depth=None)
    assert query.grades == {"faq": 1}
    damaged = "query-id\tcorpus-id\tscore\n1\t0\tfaq\t1\n"
    with pytest.raises(UnreadableInput, match=r"line 2 of .* must have 3 fields"):
        read_beir(folder(tmp_path, judgements=damaged), depth=None)


@pytest.mark.parametrize(
    ("judgements", "said"),
    [
        ("1 user guide.pdf 1\n", "tabs between them where an id holds a blank"),
        ("1\tuser\tguide.pdf\t1\n", "must have 3 fields"),
        ("1\t\t1\n", "line 1 of .* has an empty field"),
        ("1\t0\t\t1\n", "line 1 of .* has an empty field"),
    ],
)
def test_a_line_that_may_be_read_in_two_ways_is_not_guessed(
    tmp_path: Path, judgements: str, said: str
) -> None:
    with pytest.raises(UnreadableInput, match=said):
        read_beir(folder(tmp_path, judgements=judgements), depth=None)


def test_an_id_that_comes_again_with_another_text_is_named(tmp_path: Path) -> None:
    judgements = "1\tfaq\t1\n"
    twice = (*CORPUS.items(), ("faq", "something else"))
    with pytest.raises(UnreadableInput, match=r"line 4 of .*corpus.jsonl has the id 'faq' again"):
        read_beir(folder(tmp_path, judgements=judgements, corpus=twice), depth=None)
    asked = (("1", "how?"), ("1", "why?"))
    with pytest.raises(UnreadableInput, match=r"line 2 of .*queries.jsonl has the id '1' again"):
        read_beir(folder(tmp_path, judgements=judgements, queries=asked), depth=None)
    same = (*CORPUS.items(), ("faq", CORPUS["faq"]))
    (query,) = read_beir(folder(tmp_path, judgements=judgements, corpus=same), depth=None)
    assert dict(query.candidates) == CORPUS
