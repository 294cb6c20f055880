"""Files to passages: text, Markdown and PDF, bounded in number and size; the shipped corpus."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rag_chatbot.normalize import normalized
from rag_chatbot.passages import Passage, cut_text

ENDINGS = (".txt", ".md", ".markdown", ".pdf")
HERE = Path(__file__).resolve().parent


class UnreadableFile(ValueError):
    """A file that cannot be used; the message, for the file's owner, says which and why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read; files beyond these limits are left out and named.

    `pages` and `seconds` are those of one PDF.
    """

    files: int
    megabytes: int
    characters: int
    pages: int = 1000
    seconds: float = 20

    @property
    def bytes(self) -> int:
        return self.megabytes * 1_000_000


UPLOAD = Limits(files=10, megabytes=5, characters=400_000)
FOLDER = Limits(files=500, megabytes=20, characters=4_000_000)


@dataclass(frozen=True, slots=True)
class Reading:
    """The passages of several files, and a sentence for each file that was left out."""

    passages: tuple[Passage, ...]
    left_out: tuple[str, ...]


def read_folder(folder: Path) -> Reading:
    """Every readable file below the folder, in the order of names.

    Raises `UnreadableFile` if it is not a folder or has no such file.
    """
    if not folder.is_dir():
        raise UnreadableFile(f"{folder} is not a folder; give one with text, Markdown or PDF files")
    # a link may lead out of what the user meant to show
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    known = [path for path in files if path.suffix.lower() in ENDINGS]
    reading = read_files(((path, path.relative_to(folder).as_posix()) for path in known), FOLDER)
    if not reading.passages:
        why = " ".join(reading.left_out) or f"No file ends in {', '.join(ENDINGS)}."
        raise UnreadableFile(f"There is nothing to read in {folder}. {why}")
    return reading


def read_files(files: Iterable[tuple[Path, str]], limits: Limits) -> Reading:
    """The files, each with the name to cite it by, as far as the limits go."""
    passages: list[Passage] = []
    left_out: list[str] = []
    characters = 0
    for number, (path, name) in enumerate(files):
        if number >= limits.files:
            left_out.append(f"{name} was left out: {limits.files} files are the most.")
            continue
        try:
            found = read_file(path, name, limits)
        except UnreadableFile as error:
            left_out.append(str(error))
            continue
        characters += sum(len(passage.text) for passage in found)
        if characters > limits.characters:
            left_out.append(f"{name} was left out: {limits.characters:,} characters are the most.")
            characters -= sum(len(passage.text) for passage in found)
            continue
        passages += found
    return Reading(tuple(passages), tuple(left_out))


def read_file(path: Path, name: str, limits: Limits) -> list[Passage]:
    """One file's passages; raises `UnreadableFile`."""
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise UnreadableFile(f"{name} was left out: it ends in none of {', '.join(ENDINGS)}.")
    try:
        if path.stat().st_size > limits.bytes:
            raise UnreadableFile(f"{name} was left out: it is larger than {limits.megabytes} MB.")
        if ending == ".pdf":
            passages = _read_pdf(path, name, limits)
        else:
            passages = cut_text(path.read_text(encoding="utf-8-sig"), source=name, key=name)
    except UnicodeDecodeError:
        raise UnreadableFile(
            f"{name} was left out: it is not text in UTF-8. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise UnreadableFile(f"{name} was left out: {error.strerror}.") from error
    if not passages:
        raise UnreadableFile(
            f"{name} was left out: it holds no text."
            + (" A scanned PDF must go through text recognition first." * (ending == ".pdf"))
        )
    return passages


def _read_pdf(path: Path, name: str, limits: Limits) -> list[Passage]:
    limited = [str(limits.pages), str(limits.characters)]
    # -P: the reader's imports come from no folder of ours
    command = [sys.executable, "-P", str(HERE / "pdf_pages.py"), str(path), *limited]
    try:
        ended = subprocess.run(command, capture_output=True, check=False, timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        raise UnreadableFile(
            f"{name} was left out: reading it takes more than {limits.seconds} seconds."
        ) from None
    if ended.returncode:
        raise UnreadableFile(
            f"{name} was left out: its reader stopped with exit code {ended.returncode}."
        )
    said = json.loads(ended.stdout)
    if "error" in said:
        raise UnreadableFile(f"{name} was left out: {said['error']}")
    return [
        passage
        for number, text in enumerate(said["pages"], start=1)
        for passage in cut_text(
            normalized(text), source=f"{name}, page {number}", key=f"{name}, {number}"
        )
    ]


def read_shipped() -> list[Passage]:
    """240 English paragraphs of Wikipedia (../corpus) and 30 Chinese ones, written for this."""
    lines = (HERE.parent / "corpus" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    english: list[Passage] = []
    for paragraph, group in groupby(rows, key=lambda row: row["id"].rpartition("-")[0]):
        sentences = list(group)
        text = " ".join(row["text"] for row in sentences)
        title = sentences[0]["title"] or f"Wikipedia, paragraph {paragraph}"
        english += cut_text(text, source=title, key=f"en-{paragraph}")
    lines = (HERE / "chinese.jsonl").read_text(encoding="utf-8").splitlines()
    chinese = [
        Passage(f"zh-{number}", row["text"], row["title"])
        for number, row in enumerate(map(json.loads, lines), start=1)
    ]
    return english + chinese
