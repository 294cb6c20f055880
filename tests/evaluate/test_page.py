"""The page: what it shows, that it loads nothing, and that no text of the data is ever markup."""

import base64
import dataclasses
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.evaluate import JudgedQuery, evaluate, write_html
from bge_rerank_integrations.evaluate.page import (
    _depth_chart,
    _difference_chart,
    check_output,
    html_page,
)
from tests.evaluate.data import helped, hurt
from tests.fakes import StatedScorer, WordOverlapScorer

EVIL = """red fox <script>alert("1")</script><img src=x onerror='a()'> & $x^2$ 熊 \ud800"""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Its elements with their attributes, and its text; every element that opens must close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def evil_page() -> str:
    texts = {"p0": "a dog " + EVIL[8:], "p1": EVIL}
    query = JudgedQuery("</table>", EVIL, texts, {"p1": 1})
    return html_page(
        evaluate(
            [query, hurt(0)],
            {"<b>words</b> $1$ 熊": WordOverlapScorer("<i>"), "again": WordOverlapScorer()},
            resamples=100,
            title=EVIL,
        )
    )


def test_no_text_of_the_data_is_markup() -> None:
    page = Page(evil_page())
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "i", "base", "form"})
    assert not any(name.startswith("on") for _, given in page.elements for name in given)
    assert EVIL in page.text
    assert any("<b>words</b> $1$ 熊" in text for text in page.text)


def test_it_loads_nothing() -> None:
    page = Page(evil_page())
    (policy,) = [
        given["content"]
        for tag, given in page.elements
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    sources = [given for tag, given in page.elements if tag == "img"]
    assert len(sources) == 2 + 2, "depths, questions, and the scores of two rerankers"
    for given in sources:
        kind, _, content = str(given["src"]).partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert given["alt"]
        chart = ET.fromstring(base64.b64decode(content))
        assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    linking = {"href", "action", "srcset", "background", "data"}
    assert not any(linking & set(given) for _, given in page.elements)


def test_it_says_what_the_report_says(tmp_path: Path) -> None:
    report = evaluate(
        [helped(number) for number in range(12)],
        {"words": WordOverlapScorer(), "b": WordOverlapScorer("other")},
        resamples=500,
    )
    file = tmp_path / "report.html"
    write_html(report, file)
    text = " ".join(Page(file.read_text(encoding="utf-8")).text)
    text = unescape(" ".join(text.split()))
    assert report.verdict in text
    assert "12 questions, 3 candidates each on average, 3 at most." in text
    assert "hold 100.0% of the relevant passages" in text
    assert "0.500 [0.500, 0.500]" in text
    assert "+0.500 [+0.500, +0.500], p = 0.004 12 / 0" in text
    assert "b over words +0.000 (0 questions changed: too few to tell) 0 / 0" in text
    assert "0.500 → 1.000" in text
    assert "3 → 1" in text
    assert report.rerankers[1].scorer in text


def test_what_is_not_there_is_not_made_up() -> None:
    missed = JudgedQuery("1", "q", {"p0": "a 1", "p1": "b 2"}, {"p9": 1})
    report = evaluate([missed], {"stated": StatedScorer()}, resamples=100)
    assert report.rerankers[0].recommendation is None
    text = html_page(report)
    assert "score_threshold" not in text
    assert "Greatest gains of stated</h3>\n<p>None.</p>" in text
    left_out = dataclasses.replace(report, left_out=3)
    assert "3 questions without a relevant passage are left out." in html_page(left_out)
    assert "left out" not in text


def test_a_long_text_is_cut() -> None:
    query = JudgedQuery("1", "red fox", {"p0": "x" * 5000, "p1": "red fox " * 500}, {"p1": 1})
    page = html_page(evaluate([query], {"words": WordOverlapScorer()}, resamples=100))
    assert "x" * 599 + "…" in page
    assert "x" * 600 not in page


def test_it_is_checked_before_hours_of_work(tmp_path: Path) -> None:
    check_output(tmp_path / "report.html")
    check_output(tmp_path / "chart.png", image=True)
    with pytest.raises(InvalidInputError, match="there is no folder"):
        check_output(tmp_path / "no" / "report.html")
    with pytest.raises(InvalidInputError, match=r"chart\.docx cannot be drawn; it must end in"):
        check_output(tmp_path / "chart.docx", image=True)


def test_charts_name_the_rerankers() -> None:
    names = ["org/model $1$ \\x", "熊", "_hidden"]
    report = evaluate([helped(0)], {name: WordOverlapScorer() for name in names}, resamples=100)
    for chart in (_depth_chart(report), _difference_chart(report)):
        drawn = base64.b64decode(chart.partition(",")[2]).decode()
        for label in (names[0], "reranker 2", "reranker 3"):
            assert f"<!-- {label} -->" in drawn, "matplotlib writes each text as a comment"


def test_a_narrow_page_names_each_cell() -> None:
    page = Page(html_page(evaluate([helped(0)], {"words": WordOverlapScorer()}, resamples=100)))
    labels = [given["data-label"] for tag, given in page.elements if tag == "td"]
    assert labels[:5] == ["", "nDCG@10", "gain, 95% interval", "better / worse", "time a question"]
    assert None not in labels
    assert "@media (max-width: 40rem)" in "".join(page.text)
    assert "@media print" in "".join(page.text)


def test_code_to_paste_stands_below_the_verdict() -> None:
    report = evaluate([helped(0)], {"words": WordOverlapScorer()}, resamples=100)
    assert "<pre>" not in html_page(report)
    assert "<pre>BGERerank(model=&#39;a&#39;)</pre>" in html_page(
        report, code="BGERerank(model='a')"
    )
