"""The first stage: BM25 and embeddings, fused by reciprocal rank."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from bge_rerank_integrations.types import FloatArray
from rag_chatbot.languages import HAN, reads
from rag_chatbot.normalize import normalized
from rag_chatbot.passages import Passage

RRF_K = 60
"""G. Cormack, C. Clarke, S. Buettcher, "Reciprocal Rank Fusion", SIGIR 2009."""

WORD = re.compile(rf"{HAN.pattern}+|[^\W_]+?(?={HAN.pattern}|\W|_|$)")


@runtime_checkable
class Embedder(Protocol):
    """The part of an embedding model's scorer that is used here."""

    def embed(self, texts: Sequence[str], *, as_queries: bool = False) -> FloatArray: ...


class Found(NamedTuple):
    """A passage with its fused score, 1 / (60 + rank) summed over the searches that found it."""

    passage: Passage
    score: float


Progress = Callable[[int, int], None]
"""Told how many of how many are done."""
AT_ONCE = 64
"""Texts that are embedded between two reports of progress."""

Search = Callable[[str, int], Sequence[Found]]
"""A question, and how many passages are wanted at most, to passages, the best first."""


def words_of(text: str) -> list[str]:
    """Stems of English words without the commonest, and the pairs of neighbours in Chinese text."""
    stemmer = Stemmer.Stemmer("english")
    words: list[str] = []
    for word in WORD.findall(normalized(text).lower()):
        if HAN.match(word):
            words += [word[start : start + 2] for start in range(max(1, len(word) - 1))]
        elif word not in STOPWORDS_EN:
            words.append(stemmer.stemWord(word))
    return words


class Index:
    """Passages that can be searched; `over` gives another one and changes nothing.

    The embedder sees only passages in its languages; without one, BM25 searches alone.
    """

    def __init__(
        self,
        passages: Sequence[Passage],
        *,
        embedder: Embedder | None = None,
        embedder_name: str = "",
    ) -> None:
        self.passages: tuple[Passage, ...] = ()
        self._embedder = embedder
        self._embedder_name = embedder_name
        self._vectors: dict[str, FloatArray] = {}
        self._fill(tuple(passages), {})

    def over(self, passages: Sequence[Passage], *, progress: Progress | None = None) -> "Index":
        """An index over these passages with the same embedder, which embeds only what is new.

        Of equal ids the later counts. `progress` is called with how many of the new passages are
        embedded, and how many there are.
        """
        index = Index((), embedder=self._embedder, embedder_name=self._embedder_name)
        index._fill(tuple(passages), self._vectors, progress)
        return index

    def _fill(
        self,
        passages: tuple[Passage, ...],
        known: Mapping[str, FloatArray],
        progress: Progress | None = None,
    ) -> None:
        self.passages = tuple({passage.id: passage for passage in passages}.values())
        self._bm25 = bm25s.BM25()
        if any(words := [words_of(passage.text) for passage in self.passages]):
            self._bm25.index(words, show_progress=False)
        else:
            self._bm25 = None
        if self._embedder is None:
            return
        texts = dict.fromkeys(
            passage.text for passage in self.passages if reads(self._embedder_name, passage.text)
        )
        self._vectors = {text: known[text] for text in texts if text in known}
        new = [text for text in texts if text not in known]
        for start in range(0, len(new), AT_ONCE):
            batch = new[start : start + AT_ONCE]
            self._vectors.update(zip(batch, self._embedder.embed(batch), strict=True))
            if progress is not None:
                progress(start + len(batch), len(new))

    def search(
        self, question: str, count: int, *, among: Callable[[Passage], bool] | None = None
    ) -> list[Found]:
        """At most `count` passages, the best first; `among` says which may be found."""
        allowed = [
            place for place, passage in enumerate(self.passages) if among is None or among(passage)
        ]
        fused: dict[int, float] = {}
        for ranking in (self._by_words(question, allowed), self._by_meaning(question, allowed)):
            for rank, place in enumerate(ranking[: 5 * count], start=1):
                fused[place] = fused.get(place, 0.0) + 1 / (RRF_K + rank)
        best = sorted(fused, key=lambda place: -fused[place])[:count]
        return [Found(self.passages[place], fused[place]) for place in best]

    def _by_words(self, question: str, allowed: Sequence[int]) -> list[int]:
        words = words_of(question)
        if not words or self._bm25 is None:
            return []
        scores = self._bm25.get_scores(words)
        return sorted(
            (place for place in allowed if scores[place] > 0), key=lambda place: -scores[place]
        )

    def _by_meaning(self, question: str, allowed: Sequence[int]) -> list[int]:
        if self._embedder is None or not reads(self._embedder_name, question):
            return []
        places = [place for place in allowed if self.passages[place].text in self._vectors]
        if not places:
            return []
        (query,) = self._embedder.embed([question], as_queries=True)
        cosines = np.stack([self._vectors[self.passages[place].text] for place in places]) @ query
        return [places[number] for number in np.argsort(-cosines, kind="stable")]
