"""Which sentence of a passage answers: its sentences scored like passages, the best one kept."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from bge_rerank_integrations.sentences import Span, split_sentences
from bge_rerank_integrations.trace import note
from bge_rerank_integrations.types import Evidence, FloatArray, Pair


def find_evidence(
    query: str,
    texts: Sequence[str],
    *,
    score: Callable[[Sequence[Pair]], FloatArray],
    shown: Callable[[float], float],
    known: Mapping[Pair, float],
) -> list[Evidence | None]:
    """The sentence of each text that scores highest with the query, the first of equal ones.

    All sentences go through `score` in one call, each distinct one once; a pair in `known` has its
    raw score already, so that a text of one sentence costs nothing. `shown` puts a raw score on the
    scale that is shown. None for a text without a letter or digit, and for one of which a sentence
    was not scored (NaN): the best may be that one.
    """
    spans = [sentences_to_score(text) for text in texts]
    pairs = [
        [(query, text[start:end]) for start, end in found]
        for text, found in zip(texts, spans, strict=True)
    ]
    raw = dict(known)
    asked = [pair for pair in dict.fromkeys(chain.from_iterable(pairs)) if pair not in raw]
    note({"sentences": len(asked)})
    if asked:
        raw |= zip(asked, score(asked).tolist(), strict=True)
    return [
        _best(found, [raw[pair] for pair in own], shown)
        for found, own in zip(spans, pairs, strict=True)
    ]


def sentences_to_score(text: str) -> list[Span]:
    """The sentences of a text that hold a letter or digit: a rule or a row of stars is none."""
    return [
        (start, end)
        for start, end in split_sentences(text)
        if any(character.isalnum() for character in text[start:end])
    ]


def _best(
    spans: Sequence[Span], raw: Sequence[float], shown: Callable[[float], float]
) -> Evidence | None:
    if not spans or np.isnan(raw).any():
        return None
    place = int(np.argmax(raw))
    return Evidence(*spans[place], shown(raw[place]), raw[place])
