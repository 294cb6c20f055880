"""Every candidate scored once; from then on orders and measures are arithmetic.

An order is judged by its ranks, never by its scores: measures break ties by the passages' ids,
and a reranker by the order it was given.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_rerank_integrations.base.raw_scores import checked_scores
from bge_rerank_integrations.errors import InvalidInputError, MissingExtra
from bge_rerank_integrations.evaluate.bootstrap import Array
from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.types import FloatArray, Scorer

if TYPE_CHECKING:
    from ir_measures.measures import Measure

Orders = Sequence[NDArray[np.intp]]
"""For each question, the positions of its candidates, the best first."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The raw scores of every question's candidates, and the seconds each question took."""

    scores: tuple[FloatArray, ...]
    seconds: Array


def score_all(
    scorer: Scorer, queries: Sequence[JudgedQuery], *, name: str, show_progress: bool
) -> Scored:
    """Score each question's candidates in a call of their own, and time it.

    The first question with candidates is scored once more before the clock runs, so that what is
    done once does not count. Raises what the scorer raises, and `MissingExtra` without tqdm for
    the progress bar.
    """
    pairs = [[(query.text, text) for text in query.candidates.values()] for query in queries]
    first = next((some for some in pairs if some), [])
    checked_scores(scorer, first[:1])
    scores, seconds = [], []
    with _progress(sum(map(len, pairs)), name, show=show_progress) as advance:
        for some in pairs:
            begin = time.perf_counter()
            scores.append(checked_scores(scorer, some))
            seconds.append(time.perf_counter() - begin)
            advance(len(some))
    return Scored(tuple(scores), np.array(seconds))


def _progress(total: int, name: str, *, show: bool) -> "nullcontext[Callable[[int], None]] | _Bar":
    return _Bar(total, name) if show else nullcontext(lambda _: None)


class _Bar:
    """A progress bar as a context that gives the function to advance it."""

    def __init__(self, total: int, name: str) -> None:
        try:
            from tqdm.auto import tqdm
        except ModuleNotFoundError as error:
            raise MissingExtra("tqdm", "cli") from error
        self._bar = tqdm(total=total, desc=name, unit="pair")

    def __enter__(self) -> Callable[[int], object]:
        return self._bar.update  # type: ignore[no-any-return]

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def first_stage(queries: Sequence[JudgedQuery]) -> Orders:
    """The candidates as they came."""
    return [np.arange(len(query.candidates)) for query in queries]


def reranked(scores: Sequence[FloatArray], depth: int) -> Orders:
    """The first `depth` candidates by their raw scores; the others follow as they came."""
    orders = []
    for some in scores:
        head = np.argsort(-some[:depth], kind="stable")
        orders.append(np.concatenate([head, np.arange(len(head), len(some))]))
    return orders


def perfect(queries: Sequence[JudgedQuery]) -> Orders:
    """The candidates by their grades: no reranker can do better with them."""
    grades = [np.array([q.grades.get(key, 0) for key in q.candidates]) for q in queries]
    return [np.argsort(-some, kind="stable") for some in grades]


# ir-measures ends the whole process for some names that it parses, such as nDCG@0
_MEASURE = re.compile(
    r"nDCG(@[1-9][0-9]*)?|(AP|RR)(\(rel=[1-9]\))?(@[1-9][0-9]*)?|(R|P|Success)(\(rel=[1-9]\))?@[1-9][0-9]*"
)


def parse_measures(names: Sequence[str]) -> "list[Measure]":
    """The measures of these names, as ir-measures has them.

    nDCG, AP and RR, alone or down to a rank as in nDCG@10; R, P and Success down to a rank. All but
    nDCG may say from which grade on a passage is relevant, as in R(rel=2)@10. Raises
    `InvalidInputError` for other names, one given twice, or none, and `MissingExtra` without the
    `eval` extra.
    """
    try:
        import ir_measures
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "eval") from error
    for name in names:
        if _MEASURE.fullmatch(name) is None:
            raise InvalidInputError(
                f"there is no measure {name!r}; there are nDCG@10, AP, RR@10, R@10, P@10, "
                "Success@10, with any rank from 1, and AP(rel=2) for a grade"
            )
    if not names or len(set(names)) < len(names):
        raise InvalidInputError(f"measures is {list(names)}; name at least one, each once")
    return [ir_measures.parse_measure(name) for name in names]


def measured(
    queries: Sequence[JudgedQuery], orders: Orders, measures: "Sequence[Measure]"
) -> Array:
    """Each question's value of each measure: [questions, measures]."""
    import ir_measures

    # numbers for ids: measures break ties and may trip over ids that hold white space
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
