"""The page in a real browser: asked, given files, and given what is wrong."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from rag_chatbot.reading import UPLOAD, read_file
from rag_chatbot.search import Index
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.examples.conftest import served
from tests.examples.language_model import LanguageModelServer
from tests.examples.pdfs import pdf_of

pytestmark = pytest.mark.browser

SECONDS = 60
HOSTILE = (
    "<script>document.title='taken'</script><img src=taken onerror=\"document.title='taken'\">"
)
TEMPLATES = "${document.title='taken'} {{value}} @children"


class Page:
    """The chatbot's page, by the words that a reader sees."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        browser.get(address)
        self.wait(lambda: self.all("#question textarea"))

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, SECONDS, 0.1).until(lambda _: condition())

    def all(self, place: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, place)

    def one(self, place: str) -> WebElement:
        (found,) = self.all(place)
        return found

    def text(self, place: str) -> str:
        return str(
            self.browser.execute_script(
                "return document.querySelector(arguments[0])?.innerText ?? ''", place
            )
        )

    def wait_for(self, words: str, place: str) -> str:
        self.wait(lambda: words in self.text(place))
        return self.text(place)

    def write(self, text: str, place: str) -> None:
        box = self.one(place)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.DELETE, text)

    def ask(self, question: str) -> None:
        self.write(question, "#question textarea")
        self.one("#ask").click()

    def open(self, label: str) -> None:
        for button in self.all("button:not([tabindex='-1']), [role=tab]"):
            if button.text.strip().startswith(label):
                button.click()
                return
        raise AssertionError(f"there is no {label}")

    def rerank(self, query: str, candidates: str, model: str = "") -> None:
        self.open("Playground")
        self.wait(lambda: self.one("#play-run").is_displayed())
        self.write(query, "#play-query textarea")
        self.write(candidates, "#play-candidates textarea")
        if model:
            self.write(model + Keys.ENTER, "#play-model input")
        self.one("#play-run").click()


@pytest.fixture
def page(browser: webdriver.Chrome, chat_page: str) -> Iterator[Page]:
    browser.get_log("performance")  # type: ignore[no-untyped-call] # forget what came before
    opened = Page(browser, chat_page)
    yield opened
    assert browser.title == "BGE reranker chat"  # no text has become a program
    elsewhere = [url for url in _requested(browser) if not url.startswith((chat_page, "data:"))]
    assert elsewhere == []


def _requested(browser: webdriver.Chrome) -> list[str]:
    events = [
        json.loads(entry["message"])["message"]
        for entry in browser.get_log("performance")  # type: ignore[no-untyped-call]
    ]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def test_a_question_in_english_is_answered_with_its_evidence_marked(page: Page) -> None:
    page.ask("Who coined the word oxygen?")
    page.wait_for("[1]", "#conversation .turn.assistant")
    (asked,) = page.all("#conversation .turn.user")
    assert asked.text == "Who coined the word oxygen?"
    answer = page.text("#conversation .turn.assistant")
    assert answer.startswith("The name oxygen was coined in 1777 by Antoine Lavoisier")
    marked = page.wait(lambda: page.all("#sources mark"))[0].text
    assert marked.startswith("The name oxygen was coined in 1777 by Antoine Lavoisier")
    assert marked in answer
    assert "[1] Wikipedia" in page.text("#sources")
    assert "✓ reranked" in page.text("#sources h4")
    assert "No language model is set up" in page.text("#notes")


def test_a_question_in_chinese_is_answered_and_said_not_to_be_reranked(page: Page) -> None:
    page.ask("大熊猫吃什么？")
    page.wait_for("大熊猫主要以竹子为食", "#conversation .turn.assistant")
    assert "[1] 大熊猫 · not scored" in page.wait_for("[1]", "#sources")
    assert "offline reads English only" in page.text("#notes")
    assert "not reranked" in page.text("#sources h4")


def test_off_topic_and_empty_questions_are_told_apart(page: Page) -> None:
    page.ask("How is sourdough bread baked?")
    page.wait_for("Nothing relevant was found", "#conversation .turn.assistant")
    page.wait(lambda: page.text("#sources").strip() == "")  # the clock of the answer goes
    page.ask("   ")
    page.wait_for("The question is empty", "#notes")
    assert len(page.all("#conversation .turn.user")) == 1
    page.open("New conversation")
    page.wait(lambda: not page.all("#conversation .turn"))


def test_a_file_that_is_uploaded_is_searched_and_a_broken_one_is_named(
    page: Page, tmp_path: Path
) -> None:
    (tmp_path / "zeppelins.pdf").write_bytes(pdf_of("Zeppelins were filled with hydrogen."))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    page.open("Your files")
    (upload,) = page.wait(lambda: page.all("#upload input[type=file]"))
    upload.send_keys(f"{tmp_path / 'zeppelins.pdf'}\n{tmp_path / 'broken.pdf'}")
    report = page.wait_for("zeppelins.pdf: 1 passages were added", "#report")
    assert "broken.pdf was left out: the PDF is damaged or cannot be read" in report
    page.ask("What were zeppelins filled with?")
    page.wait_for("Zeppelins were filled with hydrogen. [1]", "#conversation .turn.assistant")
    assert "zeppelins.pdf, page 1" in page.wait_for("[1]", "#sources")


def test_texts_of_a_file_and_its_name_are_never_markup(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "<img src=taken onerror=document.title='taken'> {{value}}.txt"
    file.write_text(f"Zeppelins fly. {HOSTILE} {TEMPLATES}", encoding="utf-8")
    page.open("Your files")
    (upload,) = page.wait(lambda: page.all("#upload input[type=file]"))
    upload.send_keys(str(file))
    page.wait_for("1 passages were added", "#report")
    page.ask(f"Do zeppelins fly? {HOSTILE} {TEMPLATES}")
    page.wait_for(f"Zeppelins fly. {HOSTILE} {TEMPLATES}", "#sources")
    assert "onerror" in page.text("#sources .about")
    assert page.text("#conversation .turn.user") == f"Do zeppelins fly? {HOSTILE} {TEMPLATES}"
    assert page.all("img[src*=taken]") == []


def test_the_playground_shows_both_orders_and_exports_them(page: Page) -> None:
    candidates = [
        "A bamboo flute is a hollow stem.",
        "The panda is a bear. A panda spends its day chewing bamboo.",
        f"{HOSTILE} {TEMPLATES}",
    ]
    page.rerank("What does a panda eat?", "\n".join(candidates))
    page.wait_for(HOSTILE, "#play-orders")
    shown = page.text("#play-orders").replace("\N{NO-BREAK SPACE}", " ")
    assert shown.index("not reranked") < shown.index("✓ reranked")
    assert "1 ▲ 1, was 2 · score 0." in shown
    assert page.all("#play-orders mark")[0].text == "A panda spends its day chewing bamboo."
    assert shown.count(f"{HOSTILE} {TEMPLATES}") == 1  # and beside the lines, cut
    assert "cpu, int8, ONNX Runtime" in shown
    page.open("Export")
    page.wait(lambda: '"raw_score"' in page.text("#play-json"))
    assert "BGERerank(model='offline'" in page.text("#play-langchain")


def test_two_rerankers_stand_side_by_side(page: Page) -> None:
    page.open("Playground")
    page.wait(lambda: page.one("#play-second input").is_displayed())
    page.write("offline-embedder" + Keys.ENTER, "#play-second input")
    page.rerank("What does a panda eat?", "Stocks fell.\nA panda eats bamboo.")
    page.wait(lambda: len(page.all("#play-orders h4")) == 2)
    titles = [title.text for title in page.all("#play-orders h4")]
    assert titles == ["offline", "offline-embedder"]


def test_one_reranker_s_failure_leaves_the_other_s_result(page: Page) -> None:
    page.open("Playground")
    page.wait(lambda: page.one("#play-second input").is_displayed())
    page.write("nobody/nothing" + Keys.ENTER, "#play-second input")
    page.rerank("What does a panda eat?", "Stocks fell.\nA panda eats bamboo.")
    page.wait_for("nobody/nothing failed", "#play-said .error")
    assert page.one("#play-orders mark").text == "A panda eats bamboo."
    assert "nobody/nothing" in page.text("#play-orders .error")


def test_what_is_wrong_is_said_in_the_playground(page: Page) -> None:
    hostile = f"nobody/{HOSTILE}{TEMPLATES}".replace("@", "")  # a name with @ may hold a key
    for query, candidates, model, message in (
        ("", "A panda.", "", "The query is empty"),
        ("panda", "", "", "There are no candidates"),
        ("panda", "A panda.", hostile, hostile),
        ("panda", "A panda.", "nobody/nothing", "nobody/nothing"),
    ):
        page.rerank(query, candidates, model)
        page.wait_for(message, "#play-said .error")
        assert page.text("#play-orders").strip() == ""
    assert page.all("img[src*=taken]") == []


def test_what_is_typed_while_an_answer_is_under_way_stays(
    browser: webdriver.Chrome, language_model: LanguageModelServer
) -> None:
    options = ["--embedder", "none", "--llm-url", language_model.url, "--llm-model", "tiny"]
    with served(*options) as address:
        page = Page(browser, address)
        language_model.may_answer.clear()
        page.ask("Who coined the word oxygen?")
        page.wait(lambda: language_model.requests)
        assert "Searching and reranking" in page.text("#conversation [role=status]")
        question = page.one("#question textarea")
        question.send_keys("my next question")
        page.one("#ask").click()  # one answer at a time: it is not taken, and not lost
        language_model.may_answer.set()
        page.wait_for("[1].", "#conversation .turn.assistant")
        page.wait(lambda: not page.all("#conversation [role=status]"))
        assert question.get_attribute("value") == "my next question"
        assert len(language_model.requests) == 1
        language_model.status = 500
        page.one("#ask").click()
        page.wait_for("did not answer", "#notes")
        page.wait(lambda: question.get_attribute("value") == "my next question")
        assert len(page.all("#conversation .turn.user")) == 2


@pytest.mark.parametrize(
    ("number", "answer"), [(0, "The name oxygen was coined in 1777"), (2, "大熊猫主要以竹子为食")]
)
def test_an_example_is_answered_by_one_click(page: Page, number: int, answer: str) -> None:
    page.write("typed before", "#question textarea")
    page.all("#examples .example")[number].click()
    page.wait_for(answer, "#conversation .turn.assistant")
    assert page.one("#question textarea").get_attribute("value") == "typed before"


def test_a_citation_leads_to_its_source(page: Page) -> None:
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", NARROW)
    try:
        page.ask("Who coined the word oxygen?")
        page.wait(lambda: page.all("#conversation a.cite"))
        page.wait(lambda: page.all("#sources mark"))
        page.all("#conversation a.cite")[1].click()
        top = page.wait(
            lambda: page.browser.execute_script(
                "return document.querySelector('#source-2:target')?.getBoundingClientRect().top"
            )
        )
        assert 0 <= top < NARROW["height"]
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_upload_says_how_far_its_embedding_is(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("Pandas eat bamboo.", encoding="utf-8")
    long = "\n\n".join(f"Zeppelin {number} flew. " * 45 for number in range(100))
    (tmp_path / "long.txt").write_text(long, encoding="utf-8")
    with served("--files", str(folder)) as address:
        page = Page(browser, address)
        assert page.all("#examples .example") == []  # they are about the shipped texts
        page.open("Your files")
        (upload,) = page.wait(lambda: page.all("#upload input[type=file]"))
        browser.execute_script(
            "window.told = ''; new MutationObserver(() => {"
            "  window.told += document.querySelector('#report').innerText;"
            "}).observe(document.body, {subtree: true, childList: true, characterData: true})"
        )
        upload.send_keys(str(tmp_path / "long.txt"))
        page.wait_for("long.txt: 100 passages were added", "#report")
        assert "Embedding 64 of 100 passages" in browser.execute_script("return window.told")


def test_words_of_a_chinese_pdf_that_the_browser_printed_are_found(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    text = "员工工作满十五天，十二月使用。长城的门，马车见龙。"
    browser.get(f"data:text/html;charset=utf-8,<p lang=zh>{text} office first</p>")
    (tmp_path / "a.pdf").write_bytes(base64.b64decode(browser.print_page()))
    (passage,) = read_file(tmp_path / "a.pdf", "a.pdf", UPLOAD)
    assert passage.text == f"{text} office first"
    for word in ("员工", "工作", "十二月", "长城", "马车", "office"):
        assert Index([passage]).search(word, 1), word


def test_files_are_removed_and_searched_alone(page: Page, tmp_path: Path) -> None:
    for name, text in (("a.txt", "Pandas eat cake."), ("b.txt", "Oxygen is blue.")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    page.open("Your files")
    (upload,) = page.wait(lambda: page.all("#upload input[type=file]"))
    upload.send_keys(f"{tmp_path / 'a.txt'}\n{tmp_path / 'b.txt'}")
    page.wait_for("b.txt: 1 passages were added", "#report")
    only_mine = page.one("#only-mine input")
    page.wait(only_mine.is_enabled)
    only_mine.click()
    page.ask("Who coined the word oxygen?")
    page.wait(lambda: page.all("#conversation .turn.assistant"))
    assert "Wikipedia" not in page.text("#sources")
    page.all("#upload button[aria-label='Remove this file']")[0].click()
    page.wait_for("a.txt was removed.", "#report")
    assert "added" not in page.text("#report")
    page.ask("What do pandas eat?")
    page.wait_for("Nothing relevant was found", "#conversation")


def test_the_playground_is_filled_in_and_reranked_on_the_first_visit(page: Page) -> None:
    page.open("Playground")
    page.wait(lambda: page.all("#play-orders mark"))
    lines = page.all("#play-orders line")
    assert len(lines) == 6
    assert {line.get_attribute("class") for line in lines} >= {"up", "down"}
    page.write("another query", "#play-query textarea")
    page.open("Chat")
    page.open("Playground")
    assert page.one("#play-query textarea").get_attribute("value") == "another query"


def test_tab_goes_from_the_question_to_the_button_to_the_examples(page: Page) -> None:
    page.one("#question textarea").click()
    reached = []
    for _ in range(7):
        ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.append(page.browser.switch_to.active_element.text.strip().partition("\n")[0])
    examples = [example.text for example in page.all("#examples .example")]
    assert reached == ["Ask", *examples, "New conversation", "Your files"]


WIDE = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
NARROW = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
FAINT_TEXTS = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_and_fit_the_width(
    browser: webdriver.Chrome, chat_page: str, size: dict[str, Any], scheme: str
) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page = Page(browser, chat_page)
        dark = browser.execute_script("return document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")
        page.ask("Who coined the word oxygen?")
        page.wait(lambda: page.all("#sources mark"))
        assert _faint(browser) == []
        page.open("Playground")
        page.wait(lambda: page.all("#play-orders mark"))
        assert _faint(browser) == []
        # both orders and the lines between them are within the window
        for part in page.all("#play-orders .moves > *"):
            assert part.rect["x"] >= 0
            assert part.rect["x"] + part.rect["width"] <= size["width"]
        wider = "return document.documentElement.scrollWidth - window.innerWidth"
        assert browser.execute_script(wider) <= 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _faint(browser: webdriver.Chrome) -> list[str]:
    return cast("list[str]", browser.execute_script(FAINT_TEXTS))
