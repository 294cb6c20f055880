"""The first stage: words, meanings, and ranks fused by numbers that can be checked by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from rag_chatbot.__main__ import is_loopback, parser, read_index
from rag_chatbot.passages import Passage
from rag_chatbot.search import Index, words_of
from rag_chatbot.settings import SettingsError

from bge_rerank_integrations.types import FloatArray


class Animals:
    """Vectors with an axis for felines and one for the rest; counts what it embeds."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str], *, as_queries: bool = False) -> FloatArray:
        self.embedded += texts
        felines = np.array(
            [any(word in text for word in ("cat", "lion", "tiger")) for text in texts], dtype=bool
        )
        return np.stack([felines, ~felines], axis=1).astype(np.float32)


PASSAGES = [
    Passage("dog", "A dog barks.", "a"),
    Passage("lion", "A lion roars.", "b"),
    Passage("cat", "A cat purrs.", "c"),
    Passage("熊猫", "大熊猫吃竹子。", "d"),
]


def test_words_are_stems_and_chinese_neighbours() -> None:
    assert words_of("The pandas are eating bamboo") == ["panda", "eat", "bamboo"]
    assert words_of("BGE重排序v2 竹") == ["bge", "重排", "排序", "v2", "竹"]
    assert words_of("?! ，") == []


def test_ranks_of_both_searches_are_fused() -> None:
    index = Index(PASSAGES, embedder=Animals(), embedder_name="offline-embedder")
    found = index.search("tiger cat", 3)
    # by words only the cat; by meaning lion, cat, dog: the order of equal cosines is the given one
    assert [one.passage.id for one in found] == ["cat", "lion", "dog"]
    assert [one.score for one in found] == pytest.approx([1 / 61 + 1 / 62, 1 / 61, 1 / 63])


def test_without_an_embedder_words_alone_count() -> None:
    assert [one.passage.id for one in Index(PASSAGES).search("a cat and a dog", 9)] == [
        "dog",
        "cat",
    ]
    assert Index(PASSAGES).search("tiger", 9) == []
    assert Index([]).search("tiger", 9) == []


def test_an_embedder_is_given_only_what_it_reads() -> None:
    embedder = Animals()
    index = Index(PASSAGES, embedder=embedder, embedder_name="offline-embedder")
    assert "大熊猫吃竹子。" not in embedder.embedded
    assert [one.passage.id for one in index.search("大熊猫", 9)] == ["熊猫"]
    assert "大熊猫" not in embedder.embedded


def test_another_index_embeds_only_what_is_new_and_says_how_far_it_is() -> None:
    embedder = Animals()
    index = Index(PASSAGES, embedder=embedder, embedder_name="offline-embedder")
    embedder.embedded.clear()
    new = [Passage("dog", "A dog sleeps.", "a"), Passage("tiger", "A tiger roars.", "e")]
    steps: list[tuple[int, int]] = []
    more = index.over([*PASSAGES, *new], progress=lambda *step: steps.append(step))
    assert steps == [(2, 2)]
    assert embedder.embedded == ["A dog sleeps.", "A tiger roars."]
    assert [passage.id for passage in more.passages] == ["dog", "lion", "cat", "熊猫", "tiger"]
    assert more.passages[0].text == "A dog sleeps."
    assert index.passages == tuple(PASSAGES)
    steps.clear()
    many = [Passage(str(number), f"A dog barks {number} times.", "f") for number in range(100)]
    assert len(more.over(many, progress=lambda *step: steps.append(step)).passages) == 100
    assert steps == [(64, 100), (100, 100)]
    embedder.embedded.clear()
    assert [one.passage.id for one in more.over(new).search("tiger", 9)] == ["tiger", "dog"]
    assert embedder.embedded == ["tiger"]


def test_only_what_is_allowed_is_found() -> None:
    found = Index(PASSAGES).search("cat dog", 9, among=lambda one: one.id != "cat")
    assert [one.passage.id for one in found] == ["dog"]


def test_a_reranker_is_no_embedder() -> None:
    with pytest.raises(SettingsError, match="offline is not an embedder"):
        read_index(None, "offline")


def test_the_page_is_for_this_machine_unless_told_otherwise() -> None:
    assert parser().parse_args([]).host == "127.0.0.1"
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.0.0.5", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"))
