"""Rerank the candidates of a query with one or two rerankers, with all details."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bge_rerank_integrations import Reranker, load_reranker
from bge_rerank_integrations.base.contract import show_score
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.types import LongPassages, RerankResult, Scorer
from rag_chatbot.languages import languages_of, reads
from rag_chatbot.normalize import normalized

MAX_CANDIDATES = 200
LONGEST_CANDIDATE = 20_000


class PlaygroundError(ValueError):
    """The input cannot be reranked; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options on the page, named as in `load_reranker`."""

    model: str
    top_n: int | None = None
    score_threshold: float | None = None
    normalize: bool = True
    max_length: int | None = None
    long_passages: LongPassages = "cut"

    def chosen(self) -> dict[str, Any]:
        """The options that are not the defaults, with the model."""
        return {
            name: value
            for name in self.__dataclass_fields__
            if (value := getattr(self, name)) != self.__dataclass_fields__[name].default
        }


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of one reranker; `plan` says where it ran and why."""

    options: Options
    results: tuple[RerankResult, ...]
    trace: RerankTrace
    plan: str
    notes: tuple[str, ...]

    def relevant(self, result: RerankResult, probability: float) -> bool:
        """Whether a result is worth marking evidence in.

        It is if it passed a score_threshold, or if its score as a probability (the sigmoid of a
        logit) is at least this one. A cosine is not a probability.
        """
        if not result.scored or self.options.score_threshold is not None:
            return result.scored
        if self.trace.scale == "cosine" and not self.trace.calibrated:
            return False
        if self.options.normalize or self.trace.scale == "probability":
            return result.score >= probability
        return show_score(result.raw_score, "logit", normalize=True) >= probability


@dataclass(frozen=True, slots=True)
class Failure:
    """A reranker that gave no ranking, and why."""

    model: str
    message: str


def read_candidates(pasted: str) -> list[str]:
    """One candidate a line; where blank lines stand between, one a paragraph.

    Raises `PlaygroundError` for none, too many or too long ones.
    """
    separator = r"\n\s*\n" if re.search(r"\S\s*\n\s*\n\s*\S", pasted) else r"\n"
    candidates = [piece.strip() for piece in re.split(separator, pasted) if piece.strip()]
    if not candidates:
        raise PlaygroundError("There are no candidates: paste some, one a line.")
    if len(candidates) > MAX_CANDIDATES:
        raise PlaygroundError(
            f"There are {len(candidates)} candidates; {MAX_CANDIDATES} are the most here."
        )
    longest = max(map(len, candidates))
    if longest > LONGEST_CANDIDATE:
        raise PlaygroundError(
            f"A candidate has {longest:,} characters; {LONGEST_CANDIDATE:,} are the most here."
        )
    return candidates


def rank(
    query: str, candidates: Sequence[str], options: Options, *, scorer: Scorer | None = None
) -> Ranking:
    """The candidates reranked; a `scorer` takes the place of loading the model.

    Raises `PlaygroundError` without a query, and what loading and scoring raise.
    """
    if not query.strip():
        raise PlaygroundError("The query is empty: type what the candidates are to be ordered for.")
    query = normalized(query)
    traces: list[RerankTrace] = []
    if scorer is None:
        scorer = loaded_scorer(options.model, options.max_length, options.long_passages)
    reranker = Reranker(
        scorer,
        top_n=options.top_n,
        score_threshold=options.score_threshold,
        normalize=options.normalize,
        explain=True,
        on_trace=traces.append,
    )
    results = reranker.rerank(query, candidates)
    notes = []
    if not reads(options.model, query):
        notes.append(
            f"{options.model} reads {languages_of(options.model)} only: its scores of this query "
            "mean nothing."
        )
    if cut := traces[0].counts.get("cut"):
        notes.append(f"{cut} pairs were longer than the model reads and were cut.")
    plan = str(getattr(scorer, "plan", "")) or scorer.name
    return Ranking(options, tuple(results), traces[0], plan, tuple(notes))


@lru_cache(maxsize=2)  # the two that are compared stay in memory
def loaded_scorer(model: str, max_length: int | None, long_passages: LongPassages) -> Scorer:
    """The model's scorer; raises what loading raises."""
    return load_reranker(model, max_length=max_length, long_passages=long_passages).scorer


def as_json(query: str, candidates: Sequence[str], rankings: Sequence[Ranking]) -> str:
    """Query, candidates and what each reranker made of them, as JSON; places count from 0."""
    return json.dumps(
        {
            "query": query,
            "candidates": list(candidates),
            "rankings": [
                {
                    "settings": ranking.options.chosen(),
                    "results": [
                        {
                            "index": result.index,
                            "score": result.score,
                            "raw_score": result.raw_score,
                            "evidence": result.evidence
                            and [result.evidence.start, result.evidence.end],
                        }
                        for result in ranking.results
                    ],
                    "trace": ranking.trace.as_dict(),
                }
                for ranking in rankings
            ],
        },
        ensure_ascii=False,
        indent=2,
    )


LLAMA_INDEX = """\
from llama_index.core.schema import NodeWithScore, TextNode
from bge_rerank_integrations.llama_index import BGERerank

reranker = BGERerank({options})
nodes = [NodeWithScore(node=TextNode(text=text)) for text in {texts}]
for found in reranker.postprocess_nodes(nodes, query_str={query}):
    print(found.score, found.node.get_content())
"""
LANGCHAIN = """\
from langchain_core.documents import Document
from bge_rerank_integrations.langchain import BGERerank

reranker = BGERerank({options})
documents = [Document(page_content=text) for text in {texts}]
for document in reranker.compress_documents(documents, {query}):
    print(document.metadata["relevance_score"], document.page_content)
"""


def as_code(template: str, query: str, candidates: Sequence[str], options: Options) -> str:
    """A program with these settings, in `LLAMA_INDEX` or `LANGCHAIN`, over this very input."""
    # the adapters keep 2 and 3 by default, and the playground all
    given = {**options.chosen(), "top_n": options.top_n}
    return template.format(
        options=", ".join(f"{name}={value!r}" for name, value in given.items()),
        texts="[\n    " + ",\n    ".join(map(repr, candidates)) + ",\n]",
        query=repr(query),
    )
