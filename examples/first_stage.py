"""Shared by the examples: a judged corpus, two first stages over it, and the choice of model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import bm25s
import numpy as np
import Stemmer

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base.models import DEFAULT_MODEL, OFFLINE_MODELS, Family, known_models
from bge_rerank_integrations.local.checkpoint import is_cached
from bge_rerank_integrations.types import FloatArray

CORPUS = Path(__file__).resolve().parent / "corpus"


class Text(NamedTuple):
    """A passage or a question."""

    id: str
    text: str


class Candidate(NamedTuple):
    """A passage that a first stage found, with its score there."""

    passage: Text
    score: float


class FirstStage(Protocol):
    """Finds candidates for each question, the best first."""

    def candidates(self, questions: Sequence[str], count: int) -> list[list[Candidate]]: ...


def read_texts(name: str) -> list[Text]:
    """`"corpus"` or `"queries"`."""
    lines = (CORPUS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Text(row["id"], row["text"]) for row in map(json.loads, lines)]


def read_relevant() -> dict[str, str]:
    """The id of the one relevant passage by the id of its question."""
    _, *lines = (CORPUS / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {question: passage for question, passage, _ in rows}


class BM25:
    """Counts words in common, weighted by how rare they are."""

    def __init__(self, passages: Sequence[Text]) -> None:
        self._passages = passages
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._index.index(self._words([text for _, text in passages]), show_progress=False)

    def candidates(self, questions: Sequence[str], count: int) -> list[list[Candidate]]:
        found = self._index.retrieve(self._words(list(questions)), k=count, show_progress=False)
        return [
            [
                Candidate(self._passages[place], float(score))
                for place, score in zip(*row, strict=True)
            ]
            for row in zip(*found, strict=True)
        ]

    def _words(self, texts: list[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)


class Embedder:
    """Cosines of bge-small-en-v1.5, the embedded BGE embedder.

    A call encodes the whole corpus, which takes seconds, and remembers the results. An application
    would keep the passages' vectors in an index.
    """

    def __init__(self, passages: Sequence[Text]) -> None:
        self._passages = passages
        self._scorer = load_scorer("offline-embedder")
        self._cosines: dict[str, FloatArray] = {}

    def candidates(self, questions: Sequence[str], count: int) -> list[list[Candidate]]:
        new = [question for question in questions if question not in self._cosines]
        pairs = [(question, passage.text) for question in new for passage in self._passages]
        rows = self._scorer.score(pairs).reshape(len(new), len(self._passages))
        self._cosines.update(zip(new, rows, strict=True))
        return [self._best(self._cosines[question], count) for question in questions]

    def _best(self, cosines: FloatArray, count: int) -> list[Candidate]:
        places = np.argsort(-cosines, kind="stable")[:count]
        return [Candidate(self._passages[place], float(cosines[place])) for place in places]


def arguments(description: str) -> argparse.ArgumentParser:
    """`--model` and `--first-stage`, as all the examples take them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=None, help="hub id, folder, or 'offline'")
    parser.add_argument("--first-stage", choices=["bm25", "embedder"], default="bm25")
    return parser


def open_first_stage(name: str) -> FirstStage:
    """BM25 or the embedder, over the whole corpus."""
    passages = read_texts("corpus")
    return BM25(passages) if name == "bm25" else Embedder(passages)


def choose_model(given: str | None) -> str:
    """The given model, else a BGE reranker that is on this machine, else the embedded one.

    Prints which one it is, and how to choose another.
    """
    ours = [spec.id for spec in known_models() if spec.family is Family.ENCODER]
    ours.sort(key=lambda model: model != DEFAULT_MODEL)  # that one first
    here = (model for model in ours if model not in OFFLINE_MODELS and is_cached(model))
    model = given or next(here, "offline")
    if model == "offline":
        print("Model: offline, the embedded ms-marco-MiniLM-L-12-v2 (English). Not a BGE model.")
        print(f"       --model {DEFAULT_MODEL} is the adapters' default: 2.3 GB to download, once.")
    else:
        why = "requested" if given else "a BGE reranker found on this machine"
        print(f"Model: {model} ({why}); --model offline is the embedded one.")
    return model
