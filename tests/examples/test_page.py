"""What the page is told to show, without a browser."""

import json
import re

from rag_chatbot import page
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.passages import Passage
from rag_chatbot.playground import Options
from rag_chatbot.playground_page import show
from rag_chatbot.search import Index
from rag_chatbot.settings import LanguageModel, RerankSettings

from tests.examples.language_model import LanguageModelServer

INDEX = Index([Passage("1", "Pandas eat bamboo.", "bears.txt")])


def test_a_language_model_that_fails_leaves_the_passages_and_the_question(
    language_model: LanguageModelServer,
) -> None:
    language_model.status = 500
    llm = LanguageModel("tiny", language_model.url, "none")
    bot = Chatbot("langchain", RerankSettings(), llm=llm)
    *_, shown = page.stream(bot, INDEX, " What do pandas eat? ", [])
    conversation, turns, question, notes, sources = shown
    assert 'class="turn user"' in conversation
    assert turns == []
    assert question == "What do pandas eat?"
    assert "The language model tiny at " in notes
    assert "<mark>Pandas eat bamboo.</mark>" in sources


def test_a_question_that_is_too_long_is_not_asked() -> None:
    bot = Chatbot("langchain", RerankSettings())
    ((_, turns, _, notes, _),) = page.stream(bot, INDEX, "x" * 2001, [])
    assert turns == []
    assert "more than 2000 characters" in notes


def test_the_playground_says_that_no_reranker_is_chosen() -> None:
    said, orders, *_ = show("panda", "A panda.", [])
    assert "No reranker is chosen" in said
    assert orders == ""


def test_the_playground_says_what_an_option_may_be() -> None:
    said, orders, *_ = show("panda", "A panda.", [Options("offline", max_length=1)])
    assert "max_length is 1" in said
    assert orders == ""


CANDIDATES = "Gold fell on Monday.\nPandas eat bamboo."


def test_a_reranker_that_fails_leaves_the_other_s_result() -> None:
    both = [Options("nobody/nothing"), Options("offline")]
    for chosen in (both, both[::-1]):
        said, orders, exported, *programs = show("What do pandas eat?", CANDIDATES, chosen)
        assert "nobody/nothing failed" in said
        assert orders.count("<h4>") == 2
        assert 'class="error"' in orders
        assert "<mark>Pandas eat bamboo.</mark>" in orders
        (ranking,) = json.loads(exported)["rankings"]
        assert ranking["settings"] == {"model": "offline"}
        assert all("model='offline'" in program for program in programs)


def test_rerankers_that_all_fail_are_all_named() -> None:
    said, orders, *_ = show("panda", "A panda.", [Options("nobody/one"), Options("nobody/two")])
    assert "nobody/one" in said
    assert "nobody/two" in said
    assert orders == ""


def test_evidence_is_marked_where_the_passage_is_relevant_alone() -> None:
    _, orders, *_ = show("What do pandas eat?", CANDIDATES, [Options("offline")])
    assert re.findall("<mark>(.*?)</mark>", orders) == ["Pandas eat bamboo."]
    assert "No evidence is marked" not in orders
    _, orders, *_ = show("What do pandas eat?", "Gold fell.\nIt rained.", [Options("offline")])
    assert "<mark>" not in orders
    assert "No evidence is marked: no candidate scores 0.1 or more." in orders
    raw = Options("offline", normalize=False)
    _, orders, *_ = show("What do pandas eat?", CANDIDATES, [raw])
    assert re.findall("<mark>(.*?)</mark>", orders) == ["Pandas eat bamboo."]


def test_a_cosine_marks_no_evidence_unless_a_cut_is_given() -> None:
    _, orders, *_ = show("What do pandas eat?", CANDIDATES, [Options("offline-embedder")])
    assert "<mark>" not in orders
    assert "say with score_threshold which cosine is relevant" in orders
    cut = Options("offline-embedder", score_threshold=0.5)
    _, orders, *_ = show("What do pandas eat?", CANDIDATES, [cut])
    assert re.findall("<mark>(.*?)</mark>", orders) == ["Pandas eat bamboo."]
