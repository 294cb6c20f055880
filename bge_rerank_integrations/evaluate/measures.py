"""Score every candidate once, then order and measure.

The measures get ranks, not scores: they break ties by passage id, a reranker by the order it was
given.
"""

import re
import time
from collections.abc import Sequence

import ir_measures
import numpy as np
from ir_measures.measures import Measure
from numpy.typing import NDArray
from tqdm.auto import tqdm

from bge_rerank_integrations.base.contract import checked_scores
from bge_rerank_integrations.base.trace import recording
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.evaluate.statistics import Array
from bge_rerank_integrations.types import FloatArray, Scorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, ScoreStore

Orders = Sequence[NDArray[np.intp]]
"""For each question, the positions of its candidates, best first."""


def score_all(
    scorer: Scorer,
    queries: Sequence[JudgedQuery],
    *,
    name: str,
    show_progress: bool,
    score_cache: ScoreStore | None,
) -> tuple[list[FloatArray], Array]:
    """The raw scores of each question's candidates, and the seconds that scoring them took.

    Each question is a call of its own. The seconds are NaN for a question without candidates or
    with a score from the cache. One pair is scored before the clock starts, so that one-time work
    is not timed. Raises what the scorer raises.
    """
    pairs = [[(query.text, text) for text in query.candidates.values()] for query in queries]
    checked_scores(scorer, next(some for some in pairs if some)[:1])
    cached = scorer if score_cache is None else CachedScorer(scorer, score_cache)
    scores, seconds = [], []
    with tqdm(total=sum(map(len, pairs)), desc=name, unit="pair", disable=not show_progress) as bar:
        for some in pairs:
            begin = time.perf_counter()
            with recording() as recorder:
                scores.append(checked_scores(cached, some))
            timed = some and not recorder.counts.get("cached")
            seconds.append(time.perf_counter() - begin if timed else np.nan)
            bar.update(len(some))
    return scores, np.array(seconds)


def first_stage(queries: Sequence[JudgedQuery]) -> Orders:
    """The candidates in the retriever's order."""
    return [np.arange(len(query.candidates)) for query in queries]


def reranked(scores: Sequence[FloatArray], depth: int) -> Orders:
    """The first `depth` candidates by raw score; the others keep their places after them."""
    orders = []
    for some in scores:
        head = np.argsort(-some[:depth], kind="stable")
        orders.append(np.concatenate([head, np.arange(len(head), len(some))]))
    return orders


def perfect(queries: Sequence[JudgedQuery]) -> Orders:
    """The candidates by grade: the best that any reranker can do."""
    grades = [np.array([q.grades.get(key, 0) for key in q.candidates]) for q in queries]
    return [np.argsort(-some, kind="stable") for some in grades]


# ir-measures exits the process for some names, such as nDCG@0
_MEASURE = re.compile(
    r"nDCG(@[1-9][0-9]*)?|(AP|RR)(\(rel=[1-9]\))?(@[1-9][0-9]*)?|(R|P|Success)(\(rel=[1-9]\))?@[1-9][0-9]*"
)
_PARTS = re.compile(r"(\w+)(?:\(rel=(\d)\))?(?:@(\d+))?")
_SPELLINGS = {name.lower(): name for name in ("nDCG", "AP", "RR", "R", "P", "Success")} | {
    "map": "AP",
    "mrr": "RR",
    "recall": "R",
    "precision": "P",
}


def parse_measures(names: Sequence[str]) -> list[Measure]:
    """The measures with these names, spelled as in ir-measures.

    nDCG, AP and RR, alone or with a cut-off as in nDCG@10; R, P and Success with a cut-off. All
    but nDCG accept the lowest relevant grade, as in R(rel=2)@10. Raises `InvalidInputError` for
    another name, a repeated name, or no names.
    """
    for name in names:
        if _MEASURE.fullmatch(name) is None:
            kind, rest = re.fullmatch(r"([A-Za-z]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
            meant = _SPELLINGS.get(kind.lower(), kind) + rest
            hint = f" (did you mean {meant}?)" if _MEASURE.fullmatch(meant) else ""
            raise InvalidInputError(
                f"there is no measure {name!r}{hint}; measures are nDCG@10, AP, RR@10, R@10, P@10 "
                "and Success@10, with any cut-off from 1, and AP(rel=2) for a lowest grade"
            )
    if not names or len(set(names)) < len(names):
        raise InvalidInputError(f"measures is {list(names)}; give at least one, each once")
    return [_measure(*_PARTS.fullmatch(name).groups()) for name in names]  # type: ignore[union-attr]


def _measure(kind: str, rel: str | None, cutoff: str | None) -> Measure:
    # ir-measures 0.4.3 parses names with parts of `ast` that Python 3.14 has removed
    measure: Measure = getattr(ir_measures, kind)
    graded: Measure = measure if rel is None else measure(rel=int(rel))
    return graded if cutoff is None else graded @ int(cutoff)


def measured(queries: Sequence[JudgedQuery], orders: Orders, measures: Sequence[Measure]) -> Array:
    """Each question's value of each measure: [questions, measures]."""
    # numbers as query ids: an id may hold white space, which measures split at
    run, judged = [], []
    for number, (query, order) in enumerate(zip(queries, orders, strict=True)):
        keys = list(query.candidates)
        run += [
            ir_measures.ScoredDoc(str(number), keys[place], float(-rank))
            for rank, place in enumerate(order.tolist())
        ]
        judged += [ir_measures.Qrel(str(number), key, g) for key, g in query.grades.items()]
    values = np.full((len(queries), len(measures)), np.nan)
    columns = {measure: column for column, measure in enumerate(measures)}
    for metric in ir_measures.iter_calc(list(measures), judged, run):
        values[int(metric.query_id), columns[metric.measure]] = metric.value
    return values
