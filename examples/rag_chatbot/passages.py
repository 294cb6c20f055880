"""The passages to search and cite: a few sentences each, cut from longer texts."""

import re
from dataclasses import dataclass

LONGEST = 900
"""Characters of a passage: about 200 tokens of English, which every reranker reads whole."""

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")  # noqa: RUF001 - Chinese full stops

BETWEEN_HAN = re.compile(r"(?<=[\u3000-\u303f\u3400-\u9fff\uff00-\uff65]) (?=[\u3400-\u9fff])")
"""A space that a line's end has left in Chinese, which is written without."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a source; `source` is shown to the reader: a title, or a file and its page."""

    id: str
    text: str
    source: str


def cut_text(text: str, *, source: str, key: str, longest: int = LONGEST) -> list[Passage]:
    """The text as passages of at most `longest` characters, with ids `key#1`, `key#2` and so on.

    Paragraphs, which a blank line ends, stay whole and short ones stay together where they fit;
    a longer one is cut between sentences, and a longer sentence anywhere.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        for part in _fitting(BETWEEN_HAN.sub("", " ".join(paragraph.split())), longest):
            if pieces and len(pieces[-1]) + 1 + len(part) <= longest:
                pieces[-1] += "\n" + part
            else:
                pieces.append(part)
    return [
        Passage(f"{key}#{number}", piece, source) for number, piece in enumerate(pieces, start=1)
    ]


def _fitting(paragraph: str, longest: int) -> list[str]:
    if len(paragraph) <= longest:
        return [paragraph] if paragraph else []
    parts: list[str] = []
    room = 0
    for sentence in SENTENCE_END.split(paragraph):
        for start in range(0, len(sentence), longest):
            piece = sentence[start : start + longest]
            if len(piece) + 1 <= room:
                parts[-1] += (" " if parts[-1][-1].isascii() else "") + piece
            else:
                parts.append(piece)
            room = longest - len(parts[-1])
    return parts
