"""Judged questions whose measures a reader can work out, and a scorer that says what it is told."""

from collections.abc import Sequence

import numpy as np

from bge_rerank_integrations.evaluate.judged import JudgedQuery
from bge_rerank_integrations.types import FloatArray, Pair, Scale


class StatedScorer:
    """A passage's score is the number that its text ends with: "a fox, 2.5" scores 2.5."""

    def __init__(self, scale: Scale = "logit", name: str = "stated") -> None:
        self.scale = scale
        self.name = name

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return np.array([float(passage.split()[-1]) for _, passage in pairs], dtype=np.float32)


def helped(number: int) -> JudgedQuery:
    """Its answer comes third; by words in common it comes first. nDCG 0.5, then 1."""
    texts = {"p0": "a dog", "p1": "a red hat", "p2": "a red fox"}
    return JudgedQuery(f"helped-{number}", "red fox", texts, {"p2": 1})


def hurt(number: int) -> JudgedQuery:
    """Its answer comes first; by words in common it comes second. nDCG 1, then 1/log2(3)."""
    texts = {"p0": "the sky at noon", "p1": "a blue sky"}
    return JudgedQuery(f"hurt-{number}", "blue sky", texts, {"p0": 1, "p1": 0})


def stated(number: int, *scores: float, relevant: Sequence[int] = ()) -> JudgedQuery:
    """Candidates of these scores, in this order; those at the places `relevant` answer."""
    texts = {f"p{place}": f"passage {score!r}" for place, score in enumerate(scores)}
    return JudgedQuery(str(number), "question", texts, {f"p{place}": 1 for place in relevant})
