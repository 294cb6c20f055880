"""Both versions of the chatbot over a few passages, with scores that can be checked by eye."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from rag_chatbot.answers import (
    EXTRACTIVE,
    NOTHING_FOUND,
    Answer,
    AnswerFailed,
    Source,
    Turn,
    check_citations,
)
from rag_chatbot.chatbot import Chatbot, Framework
from rag_chatbot.passages import Passage
from rag_chatbot.search import Index, words_of
from rag_chatbot.settings import (
    LanguageModel,
    RerankSettings,
    SettingsError,
    read_language_model,
)

from bge_rerank_integrations.types import FloatArray, Pair, Scale
from tests.examples.language_model import LanguageModelServer

PASSAGES = [
    Passage("1", "A bear. Pandas eat bamboo and little else.", "bears.txt"),
    Passage("2", "Pandas sleep at night.", "sleep.md"),
    Passage("3", "Stocks fell on Monday.", "money.pdf, page 2"),
    Passage("4", "熊是动物。大熊猫吃竹子。", "熊猫.txt"),
]
HISTORY: list[Turn] = [
    {"role": "user", "content": "Which animals live in China?"},
    {"role": "assistant", "content": "Pandas [1]."},
]

frameworks = pytest.mark.parametrize("framework", get_args(Framework))


class SharedWords:
    """Two for each word that query and passage share, less three: logits around zero."""

    name = "shared-words"
    scale: Scale = "logit"

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        shared = [len({*words_of(query)} & {*words_of(passage)}) for query, passage in pairs]
        return np.array([2 * number - 3 for number in shared], dtype=np.float32)


def chatbot(framework: Framework, *, llm: LanguageModel | None = None) -> Chatbot:
    return Chatbot(framework, RerankSettings("shared-words", scorer=SharedWords()), llm=llm)


def ask(bot: Chatbot, question: str, history: Sequence[Turn] = ()) -> list[Answer]:
    return list(bot.ask(question, history, Index(PASSAGES)))


@frameworks
def test_without_a_language_model_the_evidence_answers(framework: Framework) -> None:
    *_, answer = ask(chatbot(framework), "What do pandas eat?")
    assert answer.text == "Pandas eat bamboo and little else. [1]\nPandas sleep at night. [2]"
    first, second = answer.sources
    assert (first.source, first.text[slice(*(first.evidence or ()))]) == (
        "bears.txt",
        "Pandas eat bamboo and little else.",
    )
    assert first.score == pytest.approx(1 / (1 + np.exp(-1)))  # two words shared
    assert second.score == pytest.approx(1 / (1 + np.exp(1)))
    assert answer.notes == (EXTRACTIVE,)


@frameworks
def test_chinese_is_found_by_neighbouring_characters(framework: Framework) -> None:
    (answer,) = ask(chatbot(framework), "大熊猫吃竹子吗？")
    assert answer.text == "大熊猫吃竹子。 [1]"
    assert answer.sources[0].source == "熊猫.txt"


@frameworks
@pytest.mark.parametrize("question", ["How is bread baked?", "怎样修自行车？", "?!"])
def test_off_topic_nothing_is_found(framework: Framework, question: str) -> None:
    assert ask(chatbot(framework), question) == [Answer(NOTHING_FOUND, ())]


@frameworks
def test_a_model_that_does_not_read_the_language_ranks_nothing(framework: Framework) -> None:
    *_, answer = ask(Chatbot(framework, RerankSettings("offline")), "大熊猫吃什么？")
    assert [(source.source, source.score, source.evidence) for source in answer.sources] == [
        ("熊猫.txt", None, None)
    ]
    assert "offline reads English only" in answer.notes[-1]


@frameworks
def test_a_model_is_given_no_passage_that_it_does_not_read(framework: Framework) -> None:
    passages = [Passage("1", "OK 大熊猫吃竹子。", "zh"), Passage("2", "Pandas are OK.", "en")]
    bot = Chatbot(framework, RerankSettings("offline", min_score=0))
    *_, answer = bot.ask("Are pandas OK?", (), Index(passages))
    assert [source.source for source in answer.sources] == ["en"]


@frameworks
def test_a_language_model_answers_from_numbered_passages(
    framework: Framework, language_model: LanguageModelServer
) -> None:
    llm = LanguageModel("tiny", language_model.url, "a-key")
    answers = ask(chatbot(framework, llm=llm), "What do pandas eat?")
    assert answers[-1].text == "Pandas eat bamboo [1]."
    assert [source.source for source in answers[-1].sources] == ["bears.txt", "sleep.md"]
    assert answers[-1].notes == ()
    grown = [answer.text for answer in answers if answer.text]
    assert grown[:2] == ["Pandas ", "Pandas eat "]
    (request,) = language_model.requests
    assert language_model.keys == ["Bearer a-key"]
    assert (request["model"], request["stream"]) == ("tiny", True)
    system, question = (message["content"] for message in request["messages"])
    assert "[1] A bear. Pandas eat bamboo and little else." in system
    assert "[2] Pandas sleep at night." in system
    assert "Stocks" not in system
    assert "bears.txt" not in system
    assert question == "What do pandas eat?"


@frameworks
def test_a_follow_up_is_searched_for_as_a_whole_question(
    framework: Framework, language_model: LanguageModelServer
) -> None:
    # what the model makes of the follow-up, streamed or not
    language_model.pieces = ["What do ", "pandas eat?"]
    llm = LanguageModel("tiny", language_model.url, "none")
    *_, answer = ask(chatbot(framework, llm=llm), "And what do they eat?", HISTORY)
    assert answer.sources[0].source == "bears.txt"
    condensing, answering = language_model.requests
    assert "And what do they eat?" in str(condensing["messages"])
    assert "Which animals live in China?" in str(answering["messages"])


@frameworks
def test_off_topic_no_language_model_is_asked(
    framework: Framework, language_model: LanguageModelServer
) -> None:
    llm = LanguageModel("tiny", language_model.url, "none")
    *_, answer = ask(chatbot(framework, llm=llm), "How is bread baked?")
    assert (answer.text, answer.sources) == (NOTHING_FOUND, ())
    assert language_model.requests == []


# LlamaIndex raises it in its own thread too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@frameworks
def test_a_language_model_that_refuses_is_named_without_its_words(
    framework: Framework, language_model: LanguageModelServer
) -> None:
    language_model.status = 401
    llm = LanguageModel("tiny", language_model.url, "a-key")
    with pytest.raises(AnswerFailed) as failed:
        ask(chatbot(framework, llm=llm), "What do pandas eat?")
    message = str(failed.value)
    assert message.startswith(f"The language model tiny at {language_model.url} did not answer")
    assert "AuthenticationError" in message
    assert "a-key" not in message + repr(llm)
    assert "refused" not in message


def test_a_citation_of_no_passage_is_said() -> None:
    source = Source(1, "text", "file", 0.9, None)
    checked = check_citations(Answer("So it is [1] [3].", (source,)))
    assert checked.notes == ("The answer cites [3], which is not a passage.",)
    uncited = check_citations(Answer("So it is.", (source,)))
    assert uncited.notes == ("The answer cites no passage: check it against those below.",)


def test_what_makes_a_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    assert read_language_model(None, None) is None
    local = read_language_model("http://127.0.0.1:11434/v1", "llama3.2")
    assert local == LanguageModel("llama3.2", "http://127.0.0.1:11434/v1", "none")
    with pytest.raises(SettingsError, match="--llm-model"):
        read_language_model("http://127.0.0.1:11434/v1", None)
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        read_language_model(None, "gpt")
    with pytest.raises(SettingsError, match="holds a name or password") as refused:
        read_language_model("http://me:secret@127.0.0.1/v1", "gpt")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    assert read_language_model(None, None) is None
    assert read_language_model(None, "gpt") == LanguageModel("gpt", key="a-key")


def test_a_reranker_that_is_missing_is_said_before_a_page_is_up(tmp_path: Path) -> None:
    from bge_rerank_integrations import ModelNotFound

    with pytest.raises(ModelNotFound, match="no-such-model"):
        Chatbot("langchain", RerankSettings(str(tmp_path / "no-such-model"))).warm_up()
