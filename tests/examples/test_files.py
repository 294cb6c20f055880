"""Files to passages, and texts to HTML that does nothing."""

from html import unescape
from pathlib import Path

import pytest
from rag_chatbot.answers import Source, Turn
from rag_chatbot.languages import reads
from rag_chatbot.markup import badge, conversation, marked, messages, plain, sources
from rag_chatbot.normalize import normalized
from rag_chatbot.passages import LONGEST, cut_text
from rag_chatbot.reading import (
    UPLOAD,
    Limits,
    UnreadableFile,
    read_files,
    read_folder,
    read_shipped,
)
from rag_chatbot.search import Index

from tests.examples.pdfs import pdf_of, pdf_with_negative_offsets, slow_pdf

HOSTILE = (
    """<script>alert(1)</script><img src=x onerror="alert(1)">${alert(1)}{{value}}@children`"""
)


def left_out(path: Path, *, limits: Limits = UPLOAD) -> str:
    reading = read_files([(path, path.name)], limits)
    assert reading.passages == ()
    (reason,) = reading.left_out
    return reason


def test_a_folder_s_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Bees\n\nThey dance.", encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "熊猫 a.TXT").write_text("\ufeff大熊猫吃竹子。", encoding="utf-8")
    (tmp_path / "a.pdf").write_bytes(pdf_of("First page.", "Second page."))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    reading = read_folder(tmp_path)
    assert [(passage.source, passage.text) for passage in reading.passages] == [
        ("a.pdf, page 1", "First page."),
        ("a.pdf, page 2", "Second page."),
        ("b.md", "# Bees\nThey dance."),
        ("deep/熊猫 a.TXT", "大熊猫吃竹子。"),
    ]
    assert reading.left_out == ()
    assert len({passage.id for passage in reading.passages}) == 4


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UnreadableFile, match="There is nothing to read"):
        read_folder(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.pdf", b"%PDF-1.7 and then nothing", "the PDF is damaged"),
        ("cut.pdf", pdf_of("A page.")[:200], "the PDF is damaged"),
        ("no.pdf", b"plain text", "the PDF is damaged"),
        ("scan.pdf", pdf_of(""), "it holds no text. A scanned PDF"),
        ("empty.txt", b" \n", "it holds no text."),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not text in UTF-8"),
        ("run.exe", b"MZ", "it ends in none of .txt, .md, .markdown, .pdf"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_reason(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    said = left_out(tmp_path / name)
    assert said.startswith(f"{name} was left out: ")
    assert reason in said


def test_reading_is_bounded(tmp_path: Path) -> None:
    limits = Limits(files=2, megabytes=1, characters=10)
    for name, length in (("a", 6), ("b", 6), ("c", 1), ("large", 1_000_001)):
        (tmp_path / f"{name}.txt").write_text("x" * length, encoding="utf-8")
    files = [(tmp_path / f"{name}.txt", f"{name}.txt") for name in "abc"]
    reading = read_files(files, limits)
    assert [passage.text for passage in reading.passages] == ["xxxxxx"]
    assert reading.left_out == (
        "b.txt was left out: 10 characters are the most.",
        "c.txt was left out: 2 files are the most.",
    )
    assert "it is larger than 1 MB" in left_out(tmp_path / "large.txt", limits=limits)
    (tmp_path / "long.pdf").write_bytes(pdf_of("eleven long"))
    assert "it has more than 10 characters" in left_out(tmp_path / "long.pdf", limits=limits)


def test_a_pdf_that_breaks_its_reader_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_with_negative_offsets("First page."))
    (tmp_path / "b.txt").write_text("A good file.", encoding="utf-8")
    (tmp_path / "c.pdf").write_bytes(pdf_of("A good page."))
    reading = read_folder(tmp_path)
    assert [passage.text for passage in reading.passages] == ["A good file.", "A good page."]
    (reason,) = reading.left_out
    assert reason.startswith("a.pdf was left out: the PDF is damaged or cannot be read (ValueError")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for name in ("gone.txt", "gone.pdf"):
        assert left_out(tmp_path / name) == f"{name} was left out: No such file or directory."


def test_a_pdf_is_bounded_in_pages_and_seconds(tmp_path: Path) -> None:
    (tmp_path / "long.pdf").write_bytes(pdf_of("One.", "Two.", "Three."))
    pages = Limits(files=1, megabytes=1, characters=100, pages=2)
    assert "it has 3 pages; the limit is 2" in left_out(tmp_path / "long.pdf", limits=pages)
    (tmp_path / "slow.pdf").write_bytes(slow_pdf(pages=200))
    assert (tmp_path / "slow.pdf").stat().st_size < 100_000
    seconds = Limits(files=1, megabytes=1, characters=100, seconds=3)
    said = left_out(tmp_path / "slow.pdf", limits=seconds)
    assert said == "slow.pdf was left out: reading it takes more than 3 seconds."


@pytest.mark.parametrize(
    ("text", "plain_text"),
    [
        ("\u2f2f\u4f5c\u4eba\u5458", "工作人员"),  # a Kangxi radical
        ("\u2ed3\u57ce\u7684\u2ed4\uff0c\u2ee2", "长城的门，马"),
        ("o\ufb03ce \uff22\uff27\uff25", "office BGE"),
        ("竹子？（对）", "竹子？（对）"),
    ],
)
def test_characters_that_look_alike_are_made_one(text: str, plain_text: str) -> None:
    assert normalized(text) == plain_text
    (passage,) = cut_text(plain_text, source="s", key="k")
    assert [found.passage for found in Index([passage]).search(text, 1)] == [passage]


def test_lines_of_chinese_are_joined_without_a_space() -> None:
    (passage,) = cut_text("大熊\n猫吃竹子，\n不吃 OK\nyes.", source="s", key="k")
    assert passage.text == "大熊猫吃竹子，不吃 OK yes."


def test_long_texts_are_cut_between_sentences_and_lose_nothing() -> None:
    text = "One sentence. " * 200 + "\n\n" + "一句话。" * 400 + "\n\n" + "x" * 2000
    passages = cut_text(text, source="s", key="k")
    assert max(len(passage.text) for passage in passages) <= LONGEST
    assert passages[0].text.endswith("sentence.")
    joined = "".join("".join(passage.text.split()) for passage in passages)
    assert joined == "".join(text.split())
    assert [passage.id for passage in passages[:2]] == ["k#1", "k#2"]


def test_the_shipped_texts_are_in_two_languages() -> None:
    passages = read_shipped()
    assert sum(not reads("offline", passage.text) for passage in passages) == 30
    assert max(len(passage.text) for passage in passages) <= LONGEST
    assert any("大熊猫主要以竹子为食" in passage.text for passage in passages)


@pytest.mark.parametrize(
    ("model", "text", "readable"),
    [
        ("offline", "What do pandas eat?", True),
        ("offline", "大熊猫吃什么？", False),
        ("offline", "Что едят панды?", False),
        ("offline", "Is 熊猫 a panda?", True),
        ("offline", "1777?", True),
        ("BAAI/bge-reranker-base", "大熊猫吃什么？", True),
        ("BAAI/bge-reranker-base", "Что едят панды?", False),
        ("BAAI/bge-reranker-v2-m3", "Что едят панды?", True),
        ("somebody/something", "Что едят панды?", True),
    ],
)
def test_a_model_reads_the_scripts_of_its_languages(model: str, text: str, readable: bool) -> None:
    assert reads(model, text) is readable


def test_hostile_text_reads_as_it_is() -> None:
    shown = plain(HOSTILE)
    assert unescape(shown) == HOSTILE
    assert not {"<", ">", '"', "$", "{", "}", "@", "`"} & set(shown)
    for page in (
        messages([HOSTILE]),
        sources([Source(1, HOSTILE, HOSTILE, 0.5, (8, 16))]),
    ):
        assert "<script" not in page
        assert "<img" not in page
        assert "{{" not in page


def test_evidence_is_marked_and_nothing_else() -> None:
    assert marked("a <b> c", (2, 5)) == "a <mark>&lt;b&gt;</mark> c"
    assert marked("a <b> c", None) == "a &lt;b&gt; c"


def test_citations_of_the_last_answer_lead_to_its_sources() -> None:
    turns: list[Turn] = [
        {"role": "assistant", "content": "Before [1]."},
        {"role": "user", "content": "Why [1]?"},
        {"role": "assistant", "content": "So [1], not [7]."},
    ]
    shown = conversation(turns, sources=[1])
    assert shown.count("<a ") == 1
    assert 'So <a class="cite" href="#source-1">[1]</a>, not [7].' in shown
    assert 'id="source-1"' in sources([Source(1, "text", "file", 0.5, None)])


def test_sources_say_whether_they_were_reranked() -> None:
    assert badge(reranked=True) in sources([Source(1, "text", "file", 0.5, None)])
    assert badge(reranked=False) in sources([Source(1, "text", "file", None, None)])
    assert sources([]) == ""
