"""Files to passages, and texts to HTML that does nothing."""

from html import unescape
from pathlib import Path

import pytest
from rag_chatbot.answers import Source
from rag_chatbot.languages import reads
from rag_chatbot.markup import marked, messages, plain, sources
from rag_chatbot.passages import LONGEST, cut_text
from rag_chatbot.reading import (
    UPLOAD,
    Limits,
    UnreadableFile,
    read_files,
    read_folder,
    read_shipped,
)

from tests.chat.pdfs import pdf_of

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
    with pytest.raises(UnreadableFile, match="nowhere is no folder"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.pdf", b"%PDF-1.7 and then nothing", "it is damaged"),
        ("cut.pdf", pdf_of("A page.")[:200], "it is damaged"),
        ("no.pdf", b"plain text", "it is damaged"),
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
    assert "10 characters are the most" in left_out(tmp_path / "long.pdf", limits=limits)


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
