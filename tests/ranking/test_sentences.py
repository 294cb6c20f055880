"""Where sentences lie: English, Chinese, both at once, and texts that nobody punctuated."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bge_rerank_integrations.ranking.sentences import (
    MAX_CHARACTERS,
    WRAPPED_COLUMNS,
    split_sentences,
)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


def at_bars(marked: str) -> tuple[str, list[str]]:
    """A text without its bars, and what stands between them, without white space around."""
    parts = [part.strip() for part in marked.split("|")]
    return marked.replace("|", ""), [part for part in parts if part]


ENGLISH = [
    "The panda is a bear.| It eats bamboo!| Does it sleep?| It does.",
    "Dr. Smith and Mrs. J. R. Jones paid $3.50, e.g. for bread.| They left.",
    "It is 3.5 m long, i.e. short.| Version 1.2.3 is out.| See example.com for more.",
    "He left at 5 p.m. on Monday.| She left at 6 p.m. |They met.",
    "The U.S. Army came.| It left the U.S. |The rest is history.",
    "See Fig. 3 and eq. 4.| See vol. 2, pp. 7 to 9, no. 5.| He said no.| Then he left.",
    "Bread, milk, etc. are sold.| They sell bread, milk, etc. |They close at noon.",
    '"It rains."| He said so.| "Does it?" she asked.| (It did.)| All was wet.',
    "\u201cIt rains.\u201d| He said \u2018no.\u2019| Then he left.",
    "Wait... what?| Yes... |Maybe.| Really?!| No!!!| Well.",
    "The Yahoo! search engine is old.| Is it?",
    "In 1999. |300 people came.",
    "The price is 3.5. |Pandas are free.",
    "1. Take a panda.| 2. Feed it.",
    "i like it. |it is 1.5 m, e.g. short. |really? |yes",
]
CHINESE = [
    "大熊猫吃竹子。|它们很可爱！|真的吗？|是的。",
    "“是的。”|他说：“不。”|然后他走了。",
    "他问（真的吗？），然后走了。|她没有。",
    "（他来了。）|他走了。",
    "价格是3.5元。|人口为1.4亿。",
    "第一，竹子；第二，水；第三，阳光。|没有了。",
    "他等……等到天黑。|她没有来……",
    "真的吗？！|真的！！！|好。",
]
MIXED = [
    "The panda is a bear.|它吃竹子。|Pandas eat 30 kg a day.| 他们很可爱！|Yes.",
    "Mr.王来了。|Dr. Smith说：“不。”|He left.",
    "它叫 Ursus v. 2.0 吗?|是的!|好",
    "BGE-M3 是 BAAI 的模型。|See github.com。|好。",
]
LINES = [
    "Diet\n|Pandas eat bamboo.\n\n|Range\n|China",
    "- Bamboo\n|- Water and\n  other drinks\n|- sun",
    "* bamboo\n|* water\n|\u2022 sun\n|1) one\n|2) two\n|(a) three\n|\u2460 four\n|一、五",
    "Found: \u2022 bamboo \u2022 water".replace(" \u2022", " |\u2022"),
    "It eats bamboo,\nBerries and\nwater.\n|It sleeps.",
    "panda\n|bear\r\n|the fox, the whale,\nthe owl\n|last",
    "Eats:\nbamboo and\nwater",
    "第一章\n|大熊猫吃竹子，\n也喝水。\n\n\n|第二章",
]

SCRIPTS = [
    "本稿では手法を述べる．|次に結果を示す．|最後に考察する．",  # full-width stops of papers
    "１．はじめに｡|値は３．５倍であり，図２．１に示す．|次の章へ．",
    "本文提出一种方法．|结果见图３．１．|最后是结论．",
    "Սա մեկն է։| Սա երկուսն է։| Սա երեքն է։",
    "ဒါပထမပါ။| ဒါဒုတိယပါ။| ဒါတတိယပါ။",
    "នេះជាមួយ។| នោះជាពីរ។| ចប់ហើយ។",
    "ይህ አንድ ነው።| ያ ሁለት ነው።| ያ ሦስት ነው፧",
    "यह एक है।| वह दो है॥| अंत।",
    "هل هذا صحيح؟| نعم.| یہ ایک ہے۔| ختم۔",
]
MARKUP = [
    (
        "<p>One panda. |Two pandas.</p>|<p>Three.</p>\n|<h2>Diet</h2>|Bamboo<br/>|Water<BR>|"
        "<ul><li>Sun</li>|<li>Air. |Wind</li></ul>|After"
    ),
    (
        "<table><tr><td>Pandas eat. They sleep.</td><td>No. 5</td></tr>\n|<tr><td>Foxes run!"
        "</td></tr></tbody></table>|\nThe end. |It is.<TR>\n<td>a. B</td>\n</TR>"
    ),
    "<tr>an open row. |It goes on. |<tr><td>A row. Again.</td></tr>| Is a < b? |Yes.",
]


def test_rows_of_markdown_are_whole() -> None:
    rows = ["| Panda. It eats. | 5. kg |", "|---|---|", "| Fox! | Yes? No. |"]
    text = "\n".join(["Some rows:", *rows, "After it. The end."])
    assert sentences(text) == ["Some rows:", *rows, "After it.", "The end."]


def test_no_part_of_a_table_begins_inside_a_row() -> None:
    row = "<tr><td>Item {0}. It costs</td><td>{0} dollars. No more!</td></tr>"
    rows = [row.format(number) for number in range(60)]
    assert sentences(f"<table>{''.join(rows)}</table>") == [
        f"<table>{rows[0]}",
        *rows[1:-1],
        f"{rows[-1]}</table>",
    ]


def test_hostile_markup_is_split_in_linear_time() -> None:
    for text in ("<tr " * 50_000, "<tr>" * 50_000, "</p " * 50_000, "</p>" + " " * 250_000):
        assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")
    text = "<tr><td>" + "a < b. " * 25_000
    assert len(sentences(text)) >= 2


@pytest.mark.parametrize("marked", [*ENGLISH, *CHINESE, *MIXED, *LINES, *SCRIPTS, *MARKUP])
def test_sentences_end_where_a_reader_ends_them(marked: str) -> None:
    text, expected = at_bars(marked)
    assert sentences(text) == expected


def test_wrapped_lines_are_one_sentence_and_short_ones_are_not() -> None:
    long = "word " * 12 + "of the giant"
    assert len(long) >= WRAPPED_COLUMNS
    assert sentences(f"{long}\nPanda are many. Few\nPandas") == [
        f"{long}\nPanda are many.",
        "Few",
        "Pandas",
    ]
    line = "大熊猫主要生活在中国四川的高山竹林中间那里的竹子非常丰富而且"  # 2 columns each
    assert len(line) * 2 >= WRAPPED_COLUMNS > len(line)
    assert sentences(f"{line}\n气候湿润。冬天\n下雪") == [f"{line}\n气候湿润。", "冬天", "下雪"]


def test_without_punctuation_a_text_is_one_sentence_until_it_is_too_long() -> None:
    assert sentences("pandas eat bamboo and sleep") == ["pandas eat bamboo and sleep"]
    word = "bamboo " * 200
    parts = sentences(word)
    assert " ".join(parts) == word.strip()
    assert all(MAX_CHARACTERS // 4 <= len(part) <= MAX_CHARACTERS for part in parts)
    assert {part.replace("bamboo", "").strip() for part in parts} == {""}, "words stay whole"


def test_a_long_sentence_is_divided_at_a_semicolon_before_a_comma_before_a_space() -> None:
    half = "w " * 160
    assert sentences(f"{half}a; b, {half}") == [f"{half}a;", f"b, {half.strip()}"]
    assert sentences(f"{half}a, b {half}") == [f"{half}a,", f"b {half.strip()}"]
    assert sentences("竹" * 310 + "，" + "水" * 310) == ["竹" * 310 + "，", "水" * 310]


def test_a_long_word_is_divided_but_not_between_a_letter_and_its_accents() -> None:
    text = "e\u0301" * 401
    parts = sentences(text)
    assert "".join(parts) == text
    assert max(map(len, parts)) <= MAX_CHARACTERS
    assert {part[0] for part in parts} == {"e"}
    assert "".join(sentences("\u0301" * 900)) == "\u0301" * 900


WORDS = (
    'panda Panda Dr e.g 5 熊猫 . ... ! 。 ． । ？ ” " ( ） ； 😀 - \u2022 1. <tr> </tr> </p> | <'
)
SPACES = [" ", "  ", "\n", "\r\n", "\n\n", "\u3000", "\t", ", "]
PIECES = st.sampled_from([*WORDS.split(), *SPACES])
TEXTS = st.text() | st.lists(PIECES, max_size=300).map("".join)


@settings(deadline=None)
@given(TEXTS)
@example("")
@example(" \n\u3000")
@example("。" * 1000)
@example("\u2028a\x85b\x1cc")
def test_sentences_cover_every_character_once_and_in_order(text: str) -> None:
    found = split_sentences(text)
    end = 0
    covered = []
    for span in found:
        assert end <= span[0] < span[1]
        assert text[end : span[0]].strip() == ""
        part = text[slice(*span)]
        assert part == part.strip()
        assert len(part) <= MAX_CHARACTERS
        covered.append(part)
        end = span[1]
    assert text[end:].strip() == ""
    assert "".join("".join(covered).split()) == "".join(text.split())


@settings(deadline=None)
@given(TEXTS)
def test_a_blank_line_parts_texts(text: str) -> None:
    first, second = "The panda eats", "and sleeps"
    assert sentences(f"{first}\n\n{second}") == [first, second]
    alone = sentences(f"{first}\n\n{text.strip()}")
    assert alone[0] == first


def test_a_megabyte_is_split() -> None:
    # a scan of all that stands before each mark would take 10^10 steps
    text = "The panda, Dr. Smith said, eats 3.5 kg\nof bamboo... a day • and sleeps. " * 10_000
    assert len(split_sentences(text)) >= 10_000
    assert len(split_sentences(" " * 500_000 + "." * 500_000)) == 1024  # each division halves


CORPUS = Path(__file__).parents[2] / "examples" / "corpus" / "corpus.jsonl"


def test_paragraphs_of_wikipedia_fall_into_the_sentences_they_were_made_of() -> None:
    paragraphs: dict[str, list[str]] = defaultdict(list)
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        paragraphs[row["id"].rpartition("-")[0]].append(row["text"].strip())
    known = found = both = 0
    for parts in paragraphs.values():
        ends = {len(" ".join(parts[: count + 1])) for count in range(len(parts))}
        ours = {end for _, end in split_sentences(" ".join(parts))}
        known, found, both = known + len(ends), found + len(ours), both + len(ends & ours)
    assert (len(paragraphs), known) == (240, 1175)
    # pysbd made them, which also splits "O 2", "n2 + 1" and footnotes
    assert both / known > 0.98
    assert both / found > 0.97
    assert 4.8 < found / len(paragraphs) < 5.1, "docs/scores.md says about five"
