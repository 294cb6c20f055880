"""What the page is told to show, without a browser."""

from pathlib import Path

from rag_chatbot import page
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.passages import Passage
from rag_chatbot.playground import Options
from rag_chatbot.playground_page import show
from rag_chatbot.search import Index
from rag_chatbot.settings import LanguageModel, RerankSettings

from tests.chat.language_model import LanguageModelServer

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


def test_files_are_not_added_without_end(tmp_path: Path) -> None:
    full = Index([Passage(str(number), f"x{number}", "s") for number in range(page.MOST_PASSAGES)])
    (tmp_path / "one.txt").write_text("one more", encoding="utf-8")
    index, about, report = page.add_files(
        [str(tmp_path / "one.txt")], full, lambda one: f"{len(one.passages)} passages"
    )
    assert index is full
    assert "20000 passages" in about
    assert "Nothing was added: 20000 passages are the most." in report


def test_the_playground_says_that_no_reranker_is_chosen() -> None:
    said, orders, *_ = show("panda", "A panda.", [])
    assert "No reranker is chosen" in said
    assert orders == ""


def test_the_playground_says_what_an_option_may_be() -> None:
    said, orders, *_ = show("panda", "A panda.", [Options("offline", max_length=1)])
    assert "max_length is 1" in said
    assert orders == ""
