"""Judged questions whose measures a reader can work out, and a scorer that says what it is told."""

from collections.abc import Sequence

from bge_rerank_integrations.evaluate.judged import JudgedQuery


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
