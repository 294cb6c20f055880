"""Rerankers in a row, cheap to dear: each stage leaves its best passages to the next.

A stage decides who goes on and nothing else. Scores of two scorers cannot be compared, so what is
returned is ranked and scored by the last one alone, and what fell out before is not returned.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bge_rerank_integrations.base.contract import check_several
from bge_rerank_integrations.base.trace import StageTrace, class_name, recording
from bge_rerank_integrations.errors import InvalidInputError, RerankError, ScoringFailed
from bge_rerank_integrations.option_checks import check_scorer, whole_number
from bge_rerank_integrations.types import FloatArray, Pair, Scorer

Number = TypeVar("Number", int, float)

logger = logging.getLogger("bge_rerank_integrations")

Score = Callable[[Scorer, Sequence[Pair]], tuple[FloatArray, ScoringFailed | None]]
"""Raw scores, NaN where scoring failed and the caller wants to go on, and that failure."""


@dataclass(frozen=True, slots=True)
class CascadeStage:
    """A scorer before the last one, and how many passages it leaves to the next.

    Raises `InvalidInputError` for a `keep` that is not a whole number from 1, and for what is no
    scorer.
    """

    scorer: Scorer
    keep: int

    def __post_init__(self) -> None:
        check_scorer(self.scorer, "the scorer of a cascade's stage")
        keep = whole_number(self.keep)
        if keep is None or keep < 1:
            raise InvalidInputError(
                f"keep is {self.keep!r}; it must be a whole number of passages from 1"
            )
        object.__setattr__(self, "keep", keep)


def check_cascade(stages: Iterable[CascadeStage]) -> tuple[CascadeStage, ...]:
    """The stages; raises `InvalidInputError` unless each keeps fewer than the one before."""
    checked = tuple(check_several(stages, "cascade", "[CascadeStage(scorer, keep=50)]"))
    for stage in checked:
        if not isinstance(stage, CascadeStage):
            raise InvalidInputError(
                f"cascade holds a {type(stage).__name__}; give CascadeStage(scorer, keep=50)"
            )
    check_keeps([stage.keep for stage in checked])
    return checked


def check_keeps(keeps: Sequence[int]) -> None:
    """Raise `InvalidInputError` unless the numbers of passages that stages keep fall."""
    if any(later >= earlier for earlier, later in itertools.pairwise(keeps)):
        raise InvalidInputError(
            f"the stages of the cascade keep {list(keeps)}; each must keep fewer than the one "
            "before, or it only costs time"
        )


def check_reach(top_n: int | None, keeps: Sequence[int]) -> None:
    """Raise `InvalidInputError` if more results are wanted than reach the last scorer."""
    if top_n is not None and keeps and top_n > keeps[-1]:
        raise InvalidInputError(
            f"top_n is {top_n}, and the cascade leaves {keeps[-1]} passages to the last model: "
            "what fell out has no score that could be shown. Keep more, or lower top_n"
        )


def narrow(
    stages: Sequence[CascadeStage], pairs: Sequence[Pair], *, score: Score
) -> tuple[Sequence[int], tuple[StageTrace, ...]]:
    """The positions of the pairs that reach the last scorer, ascending, and what each stage did.

    A stage keeps the highest raw scores; equal ones keep the caller's order, also at the cut. What
    it could not score counts as lowest. A stage that no more pairs reach than it keeps does not
    score and is in no trace. Errors are raised with the number of the stage.
    """
    reached: Sequence[int] = range(len(pairs))
    traces = []
    for number, stage in enumerate(stages, start=1):
        if len(reached) <= stage.keep:
            continue
        begin = time.perf_counter()
        with recording() as recorder, _speaking_of(number, reached, len(pairs)):
            raw, failure = score(stage.scorer, [pairs[place] for place in reached])
        if failure is not None:
            logger.warning(
                "stage %d of the cascade did not score %d of %d passages, which count as its "
                "lowest, in the order they came in: %s: %s",
                number,
                int(np.isnan(raw).sum()),
                len(reached),
                type(failure).__name__,
                failure,
            )
        order = np.argsort(-raw, kind="stable").tolist()  # NaN goes last
        traces.append(
            StageTrace(
                number=number,
                # the name of a large model is a hash that takes seconds
                name=recorder.facts.get("model") or stage.scorer.name,
                scale=None if np.isnan(raw).all() else stage.scorer.scale,
                keep=stage.keep,
                raw_scores=_at_places(raw.tolist(), reached, len(pairs)),
                ranks=_at_places(np.argsort(order).tolist(), reached, len(pairs)),
                failure=class_name(failure),
                counts=recorder.counts,
                seconds={"total": time.perf_counter() - begin, **recorder.seconds},
                facts=recorder.facts,
            )
        )
        reached = sorted(reached[place] for place in order[: stage.keep])
    return reached, tuple(traces)


def _at_places(
    numbers: Sequence[Number], reached: Sequence[int], pairs: int
) -> tuple[Number | None, ...]:
    """The numbers at the places of the caller's list; None elsewhere and for NaN."""
    placed: list[Number | None] = [None] * pairs
    for place, number in zip(reached, numbers, strict=True):
        placed[place] = None if math.isnan(number) else number
    return tuple(placed)


@contextmanager
def _speaking_of(number: int, reached: Sequence[int], pairs: int) -> Iterator[None]:
    """Make the errors of an earlier stage say so, without scores: they are not the last model's."""
    try:
        with caller_positions(reached, pairs):
            yield
    except RerankError as error:
        if isinstance(error, ScoringFailed):
            error.partial = None
        error.add_note(f"this came of stage {number} of the cascade")
        raise


@contextmanager
def caller_positions(reached: Sequence[int], pairs: int) -> Iterator[None]:
    """Turn the index and the partial scores of errors into those of the caller's list of pairs."""
    try:
        yield
    except RerankError as error:
        if len(reached) < pairs:
            if isinstance(error, ScoringFailed) and error.partial is not None:
                partial = np.asarray(error.partial)
                if partial.shape == (len(reached),):
                    error.partial = spread(partial, reached, pairs)
            if isinstance(error, InvalidInputError) and error.index is not None:
                error.index = reached[error.index]
            error.add_note("positions count the passages that the cascade's earlier stages left")
        raise


def spread(raw: FloatArray, reached: Sequence[int], pairs: int) -> FloatArray:
    """The scores of those that were reached at their places among all the pairs, NaN elsewhere."""
    everywhere = np.full(pairs, np.nan, dtype=np.float32)
    everywhere[list(reached)] = raw
    return everywhere
