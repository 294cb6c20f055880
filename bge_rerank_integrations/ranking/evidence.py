"""Find the sentence of a passage that answers: score its sentences, keep the best."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from bge_rerank_integrations.base.contract import CheckedPairs, check_text
from bge_rerank_integrations.base.deadline import check_time
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.ranking.calibration import ranks
from bge_rerank_integrations.ranking.sentences import Span, split_sentences
from bge_rerank_integrations.types import Evidence, FloatArray, Pair, RerankResult


def with_evidence(
    results: Sequence[RerankResult],
    pairs: Sequence[Pair],
    texts: Sequence[str],
    *,
    score: Callable[[Sequence[Pair]], FloatArray],
    shown: Callable[[float, int], float],
) -> list[RerankResult]:
    """The results, each with the highest-scoring sentence of its text, the first of equal ones.

    A result's `index` is that of its pair and text; all pairs have one query. `texts` are the
    caller's, and offsets refer to them. `score` is called once with every distinct sentence; a text
    of one sentence has its pair's raw score already. `shown` converts a raw score and the rank of
    its passage to the scale of the results. Evidence is None for a text without a letter or digit,
    and if a sentence was not scored (NaN), because that could be the best one.
    """
    query = pairs[0][0]
    raw = {pairs[result.index]: result.raw_score for result in results}
    given = [texts[result.index] for result in results]
    read = [check_text(text, "evidence text") for text in given]
    found = []
    for text in read:
        check_time("passages were divided into sentences")
        found.append(sentences_to_score(text))
    sentences = [
        [(query, text[start:end]) for start, end in spans]
        for text, spans in zip(read, found, strict=True)
    ]
    asked = [pair for pair in dict.fromkeys(chain.from_iterable(sentences)) if pair not in raw]
    note({"sentences": len(asked)})
    if asked:
        raw |= zip(asked, score(CheckedPairs(asked)).tolist(), strict=True)
    places = map(_places, given, read, found)
    order = ranks(np.array([result.raw_score for result in results])).tolist()
    rows = zip(results, given, places, sentences, order, strict=True)
    return [
        replace(result, evidence=_best(text, spans, [raw[pair] for pair in own], rank, shown))
        for result, text, spans, own, rank in rows
    ]


def sentences_to_score(text: str) -> list[Span]:
    """The sentences with a letter or digit, unlike a ruler or a row of stars."""
    return [
        (start, end)
        for start, end in split_sentences(text)
        if any(character.isalnum() for character in text[start:end])
    ]


def _places(given: str, read: str, spans: Sequence[Span]) -> Sequence[Span]:
    """Convert spans of the checked text to the given text, in which one character may be two.

    Checking joins surrogate pairs.
    """
    if len(given) == len(read):
        return spans
    begins = [0]
    for character in read:
        begin = begins[-1]
        begins.append(begin + 1 + (character > "\uffff" >= given[begin]))
    return [(begins[start], begins[end]) for start, end in spans]


def _best(
    text: str,
    spans: Sequence[Span],
    raw: Sequence[float],
    rank: int,
    shown: Callable[[float, int], float],
) -> Evidence | None:
    if not spans or np.isnan(raw).any():
        return None
    place = int(np.argmax(raw))
    start, end = spans[place]
    return Evidence(start, end, shown(raw[place], rank), raw[place], text[start:end])
