"""Queries with candidate passages and people's judgements of them, read from files.

Two layouts: JSON lines, each a query with its good and bad passages, as reranking tasks are
published; and a BEIR folder (corpus.jsonl, queries.jsonl, qrels) with a TREC run of candidates.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_rerank_integrations.passage_lines import UnreadableInput


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query, its candidates (id to text, in their first order) and the judged passages' grades.

    A judged passage need not be a candidate: then no reranker can find it, and nDCG says so.
    """

    id: str
    text: str
    candidates: Mapping[str, str]
    grades: Mapping[str, int]


def read_judged_lines(file: Path) -> list[JudgedQuery]:
    """A query for each line {"query": ..., "positive": [texts], "negative": [texts]}.

    Raises `UnreadableInput`, with the line's number, for anything else, and for a file of none.
    """
    queries: list[JudgedQuery] = []
    for place, line in _json_lines(file):
        texts = {kind: line.get(kind) for kind in ("positive", "negative")}
        if not isinstance(line.get("query"), str) or not all(
            isinstance(some, list) and all(isinstance(text, str) for text in some)
            for some in texts.values()
        ):
            raise UnreadableInput(
                f"{place} is no judged query: each line must be "
                '{"query": "...", "positive": ["..."], "negative": ["..."]}'
            )
        candidates, grades = {}, {}
        # negatives first, so that equal scores do not look like a good order
        for grade, kind in ((0, "negative"), (1, "positive")):
            for number, text in enumerate(texts[kind] or (), start=1):
                candidates[f"{kind}-{number}"] = text
                grades[f"{kind}-{number}"] = grade
        queries.append(JudgedQuery(str(len(queries) + 1), line["query"], candidates, grades))
    return _not_empty(queries, file)


def read_beir(folder: Path, run: Path | None = None, *, depth: int) -> list[JudgedQuery]:
    """The judged queries of a BEIR folder, each with the first `depth` candidates of the run.

    `run` is a TREC run; by default the one file *.trec of the folder. Judgements are read from
    qrels/test.tsv or qrels.tsv. Raises `UnreadableInput` for what is missing or not as it should.
    """
    run = run or _only_run(folder)
    qrels = folder / "qrels" / "test.tsv"
    if not qrels.is_file():
        qrels = folder / "qrels.tsv"
    grades: dict[str, dict[str, int]] = {}
    for place, fields in _fields(qrels):
        if fields[0] in ("query-id", "query_id"):
            continue
        query, passage, grade = _whole(place, fields, (0, 1, 2), 3)
        grades.setdefault(query, {})[passage] = int(grade)
    ranked: dict[str, list[tuple[int, str]]] = {}
    for place, fields in _fields(run):
        query, passage, rank = _whole(place, fields, (0, 2, 3), 6)
        ranked.setdefault(query, []).append((int(rank), passage))
    chosen = {
        query: [passage for _, passage in sorted(those)[:depth]]
        for query, those in ranked.items()
        if query in grades
    }
    wanted = {passage for passages in chosen.values() for passage in passages}
    texts = {
        key: f"{line.get('title') or ''} {line['text']}".strip()
        for key, line in _documents(folder / "corpus.jsonl")
        if key in wanted
    }
    if lost := sorted(wanted - texts.keys()):
        raise UnreadableInput(f"{run} names {lost[0]!r}, which {folder / 'corpus.jsonl'} lacks")
    return _not_empty(
        [
            JudgedQuery(key, line["text"], {p: texts[p] for p in chosen[key]}, grades[key])
            for key, line in _documents(folder / "queries.jsonl")
            if key in chosen
        ],
        folder,
    )


def _only_run(folder: Path) -> Path:
    runs = sorted(folder.glob("*.trec"))
    if len(runs) != 1:
        raise UnreadableInput(
            f"{folder} has {len(runs)} files *.trec, and candidates are read from one: name it "
            "with --run"
        )
    return runs[0]


def _documents(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, line in _json_lines(file):
        key = line.get("_id", line.get("id"))
        if key is None or not isinstance(line.get("text"), str):
            raise UnreadableInput(f'{place} must have an "_id" and a "text"')
        yield str(key), line


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, text in _lines(file):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UnreadableInput(f"{place} is not JSON: {error}") from None
        if not isinstance(line, dict):
            raise UnreadableInput(f"{place} is no JSON object")
        yield place, line


def _fields(file: Path) -> Iterator[tuple[str, list[str]]]:
    for place, text in _lines(file):
        yield place, text.split()


def _whole(place: str, fields: list[str], picked: tuple[int, int, int], count: int) -> list[str]:
    """Two ids and a whole number out of a line of `count` fields."""
    if len(fields) != count or not fields[picked[2]].isdecimal():
        raise UnreadableInput(
            f"{place} must have {count} fields, field {picked[2] + 1} a whole number"
        )
    return [fields[number] for number in picked]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where each line that is not blank stands, and the line."""
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number} of {file}", line
    except FileNotFoundError:
        raise UnreadableInput(f"there is no {file}") from None
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{file} is not UTF-8: {error.reason}") from None


def _not_empty(queries: list[JudgedQuery], source: Path) -> list[JudgedQuery]:
    if not queries:
        raise UnreadableInput(f"{source} holds no judged query that has candidates")
    return queries
