"""Find the sentence of a passage that answers best, by scoring its sentences."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from bge_rerank_integrations.base.contract import CheckedPairs, check_text
from bge_rerank_integrations.base.deadline import cancellable
from bge_rerank_integrations.base.trace import note
from bge_rerank_integrations.ranking.calibration import ranks
from bge_rerank_integrations.ranking.sentences import DIVIDING, Span, split_sentences
from bge_rerank_integrations.types import Evidence, FloatArray, Pair, RerankResult


def with_evidence(
    results: Sequence[RerankResult],
    pairs: Sequence[Pair],
    texts: Sequence[str],
    *,
    score: Callable[[Sequence[Pair]], FloatArray],
    shown: Callable[[float, int], float],
) -> list[RerankResult]:
    """The results, each with the highest-scoring sentence of its text, or the first of a tie.

    A result's `index` points to its pair and text; all pairs share one query. `texts` are the
    caller's, and offsets refer to them. `score` is called once with every distinct sentence; a text
    of one sentence keeps its pair's raw score. `shown` converts a raw score and the rank of its
    passage to the scale of the results. Evidence is None for a text without a letter or digit, and
    if a sentence was not scored (NaN), because that one could be the best.
    """
    query = pairs[0][0]
    raw = {pairs[result.index]: result.raw_score for result in results}
    found = [_sentences(query, texts[result.index]) for result in results]
    new = [pair for pair in dict.fromkeys(chain.from_iterable(found)) if pair not in raw]
    note({"sentences": len(new)})
    if new:
        raw |= zip(new, score(CheckedPairs(new)).tolist(), strict=True)
    order = ranks(np.array([result.raw_score for result in results])).tolist()

    def evidence(text: str, sentences: Mapping[Pair, Span], rank: int) -> Evidence | None:
        if not sentences or any(math.isnan(raw[pair]) for pair in sentences):
            return None
        best = max(sentences, key=raw.__getitem__)
        start, end = sentences[best]
        return Evidence(start, end, shown(raw[best], rank), raw[best], text[start:end])

    return [
        replace(result, evidence=evidence(texts[result.index], sentences, rank))
        for result, sentences, rank in zip(results, found, order, strict=True)
    ]


def _sentences(query: str, text: str) -> dict[Pair, Span]:
    """The sentences in order, except those without a letter or digit, such as a row of stars."""
    found: dict[Pair, Span] = {}
    for start, end in cancellable(split_sentences(text), DIVIDING):
        sentence = check_text(text[start:end], "evidence text")
        if any(map(str.isalnum, sentence)):
            found.setdefault((query, sentence), (start, end))
    return found
