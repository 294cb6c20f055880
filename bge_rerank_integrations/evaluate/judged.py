"""Queries with candidate passages and relevance judgements, read from files.

Two layouts: rows of a query with positive and negative passages, as reranking tasks are published;
and a BEIR folder (corpus.jsonl, queries.jsonl, qrels) with a TREC run of candidates.

ir-measures reads neither ids with blanks nor ranks, and its errors name no line; so runs and
judgements are read here.
"""

import itertools
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from bge_rerank_integrations.base.input_files import parse_json, read_lines, read_rows
from bge_rerank_integrations.base.option_group import whole_number
from bge_rerank_integrations.errors import InvalidInputError, UnreadableInput


class _Row(BaseModel):
    query: str
    negative: list[str]
    positive: list[str]


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query, its candidates (id to text, in the retriever's order) and grades of passages by id.

    A judged passage need not be a candidate: no reranker can find it then, which lowers nDCG. A
    query may have no candidates. Raises `InvalidInputError` for an id or text that is not a str,
    and for a grade that is not a whole number.
    """

    id: str
    text: str
    candidates: Mapping[str, str]
    grades: Mapping[str, int]

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.text, str):
            raise InvalidInputError(
                f"a judged query has an id of type {type(self.id).__name__} and a text of type "
                f"{type(self.text).__name__}; both must be str"
            )
        for name, given in (("candidates", self.candidates), ("grades", self.grades)):
            if not isinstance(given, Mapping):
                raise InvalidInputError(
                    f"{name} of the judged query {self.id!r} is a {type(given).__name__}; it must "
                    'be a dict by passage id, as {"node-17": ...}'
                )
        for key, text in self.candidates.items():
            if not isinstance(key, str) or not isinstance(text, str):
                raise InvalidInputError(
                    f"the judged query {self.id!r} has a candidate with the id {key!r} and type "
                    f"{type(text).__name__}; ids and candidates must be str"
                )
        grades = {}
        for key, grade in self.grades.items():
            number = whole_number(grade)
            if not isinstance(key, str) or number is None:
                raise InvalidInputError(
                    f"the judged query {self.id!r} has the grade {grade!r} for the id {key!r}; ids "
                    "must be str and grades whole numbers"
                )
            grades[key] = number
        # neither the measures nor JSON accept numpy's integers
        object.__setattr__(self, "grades", grades)

    @property
    def relevance(self) -> NDArray[np.bool_]:
        """Whether each candidate is relevant: judged, with a grade of 1 or more."""
        return np.array([self.grades.get(key, 0) >= 1 for key in self.candidates], dtype=bool)


def read_judged_lines(file: Path) -> list[JudgedQuery]:
    """Read a query from each row {"query": ..., "positive": [texts], "negative": [texts]}.

    Rows are JSON lines, or Parquet by the file's name. Raises `UnreadableInput`, which names the
    row, for anything else and for an empty file.
    """
    queries: list[JudgedQuery] = []
    for place, row in read_rows(file, json_lines=file.suffix.lower() != ".parquet"):
        try:
            read = _Row.model_validate(row, strict=True)
        except ValidationError:
            raise UnreadableInput(
                f"{place} is not a judged query: each row must be "
                '{"query": "...", "positive": ["..."], "negative": ["..."]}'
            ) from None
        # negatives come first, so that equal scores do not look like a good order
        candidates = {f"negative-{n}": text for n, text in enumerate(read.negative, start=1)}
        grades = dict.fromkeys(candidates, 0)
        positive = {f"positive-{n}": text for n, text in enumerate(read.positive, start=1)}
        grades |= dict.fromkeys(positive, 1)
        queries.append(
            JudgedQuery(str(len(queries) + 1), read.query, candidates | positive, grades)
        )
    if not queries:
        raise UnreadableInput(f"{file} holds no judged query")
    return queries


def read_beir(
    folder: Path, run: Path | None = None, *, qrels: Path | None = None, depth: int | None
) -> list[JudgedQuery]:
    """The judged queries of a BEIR folder, each with the first `depth` candidates of the run.

    `depth` None takes all of them. `run` is a TREC run; by default the one file *.trec of the
    folder. `qrels` are lines of three fields, as BEIR has them, or four, as TREC has; by default
    qrels/test.tsv or qrels.tsv. Tabs separate fields, so that an id may hold blanks; in a line
    without a tab, blanks do. A judged query that the run leaves out has no candidates: the
    retriever found nothing, which counts. Raises `UnreadableInput` for missing or invalid input,
    such as a run whose ranks and scores give two orders.
    """
    run = run or _only_run(folder)
    if qrels is None:
        qrels = folder / "qrels" / "test.tsv"
        qrels = qrels if qrels.is_file() else folder / "qrels.tsv"
    grades = read_grades(qrels)
    queries = _texts(folder / "queries.jsonl", set(grades))
    if unknown := sorted(grades.keys() - queries.keys()):
        raise UnreadableInput(
            f"{qrels} judges query {unknown[0]!r}, which {folder / 'queries.jsonl'} lacks"
        )
    ranked = _read_run(run)
    chosen = {query: ranked.get(query, [])[:depth] for query in queries}
    wanted = {passage for passages in chosen.values() for passage in passages}
    if not wanted:
        raise UnreadableInput(f"{folder} holds no judged query that has candidates in {run}")
    texts = _texts(folder / "corpus.jsonl", wanted, titled=True)
    if lost := sorted(wanted - texts.keys()):
        raise UnreadableInput(f"{run} names {lost[0]!r}, which {folder / 'corpus.jsonl'} lacks")
    return [
        JudgedQuery(query, text, {p: texts[p] for p in chosen[query]}, grades[query])
        for query, text in queries.items()
    ]


def read_grades(qrels: Path) -> dict[str, dict[str, int]]:
    """Grades by query and passage; a grade below 0, which TREC gives to spam, counts as 0."""
    grades: dict[str, dict[str, int]] = {}
    is_beir = False
    for place, fields in _fields(qrels):
        if fields[0] in ("query-id", "query_id"):
            is_beir = True
            continue
        # TREC's second field is an unused number; anything else is part of an id with a blank
        is_trec = len(fields) == 4 and re.fullmatch("Q?[0-9]+", fields[1]) is not None
        count = 4 if is_trec and not is_beir else 3
        if len(fields) != count:
            raise UnreadableInput(
                f"{place} must have 3 fields (BEIR) or 4 (TREC), the second a number, with "
                "tabs between them where an id holds a blank"
            )
        query, passage, grade = fields[0], fields[count - 2], fields[count - 1]
        if re.fullmatch(r"-?[0-9]+", grade) is None:
            raise UnreadableInput(f"{place} must have {count} fields, field {count} a whole number")
        judged = grades.setdefault(query, {})
        if judged.get(passage, int(grade)) != int(grade):
            raise UnreadableInput(f"{place} judges {passage!r} for {query!r} a second time")
        judged[passage] = int(grade)
    return grades


def _read_run(run: Path) -> dict[str, list[str]]:
    """Each query's passages in the order of their ranks, and of their scores if ranks tie.

    TREC's own program sorts by score and others by rank, so the two must agree.
    """
    ranked: dict[str, list[tuple[int, float, str]]] = {}
    for place, fields in _fields(run):
        if len(fields) != 6 or re.fullmatch(r"[0-9]+", fields[3]) is None:
            raise UnreadableInput(f"{place} must have 6 fields, field 4 a whole number")
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UnreadableInput(f"{place} must have 6 fields, field 5 a finite number")
        ranked.setdefault(fields[0], []).append((int(fields[3]), -score, fields[2]))
    for query, rows in ranked.items():
        rows.sort(key=lambda row: row[:2])
        if any(row[1] > following[1] for row, following in itertools.pairwise(rows)):
            raise UnreadableInput(
                f"{run} ranks the passages of query {query!r} one way and scores them another; "
                "the best must have the first rank and the highest score"
            )
        if len({passage for _, _, passage in rows}) < len(rows):
            raise UnreadableInput(f"{run} has a passage of query {query!r} twice")
    return {query: [passage for _, _, passage in rows] for query, rows in ranked.items()}


def _only_run(folder: Path) -> Path:
    runs = sorted(folder.glob("*.trec"))
    if len(runs) != 1:
        raise UnreadableInput(
            f"{folder} has {len(runs)} files *.trec, but candidates are read from one: name it "
            "with --run"
        )
    return runs[0]


def _texts(file: Path, wanted: Container[str], *, titled: bool = False) -> dict[str, str]:
    """The texts of the wanted ids, in the order of the file."""
    texts: dict[str, str] = {}
    for place, line in read_lines(file):
        row = parse_json(place, line)
        if not isinstance(row, dict):
            raise UnreadableInput(f"{place} is not a JSON object")
        key, title, text = row.get("_id", row.get("id")), row.get("title"), row.get("text")
        if key is None or not isinstance(text, str) or not isinstance(title, str | None):
            raise UnreadableInput(f'{place} must have an "_id" and a "text"')
        if (key := str(key)) in wanted:
            whole = f"{title or ''} {text}".strip() if titled else text
            if texts.setdefault(key, whole) != whole:
                raise UnreadableInput(f"{place} has the id {key!r} again, with another text")
    return texts


def _fields(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Fields between tabs, in which an id may hold blanks; else between blanks."""
    for place, text in read_lines(file):
        fields = [field.strip() for field in text.strip().split("\t")]
        if not all(fields):
            raise UnreadableInput(f"{place} has an empty field")
        yield place, fields if len(fields) > 1 else text.split()
