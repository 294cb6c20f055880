"""Files to passages: text, Markdown and PDF, bounded in number and size; the shipped corpus."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rag_chatbot.passages import Passage, cut_text

ENDINGS = (".txt", ".md", ".markdown", ".pdf")
HERE = Path(__file__).resolve().parent


class UnreadableFile(ValueError):
    """A file that cannot be used; the message says which and why, in words for its owner."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read at most; what is beyond is left out and named."""

    files: int
    megabytes: int
    characters: int

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

    Raises `UnreadableFile` if it is no folder or holds none.
    """
    if not folder.is_dir():
        raise UnreadableFile(f"{folder} is no folder; give one with text, Markdown or PDF files")
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
    if path.stat().st_size > limits.bytes:
        raise UnreadableFile(f"{name} was left out: it is larger than {limits.megabytes} MB.")
    if ending == ".pdf":
        passages = _read_pdf(path, name, limits)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UnreadableFile(
                f"{name} was left out: it is not text in UTF-8. Save it as UTF-8."
            ) from None
        passages = cut_text(text, source=name, key=name)
    if not passages:
        raise UnreadableFile(
            f"{name} was left out: it holds no text."
            + (" A scanned PDF must go through text recognition first." * (ending == ".pdf"))
        )
    return passages


def _read_pdf(path: Path, name: str, limits: Limits) -> list[Passage]:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    passages: list[Passage] = []
    characters = 0
    try:
        reader = PdfReader(path)
        if reader.is_encrypted:
            raise UnreadableFile(f"{name} was left out: it is locked with a password.")
        for number, page in enumerate(reader.pages, start=1):
            text = page.extract_text()
            characters += len(text)
            if characters > limits.characters:
                raise UnreadableFile(
                    f"{name} was left out: {limits.characters:,} characters are the most."
                )
            passages += cut_text(text, source=f"{name}, page {number}", key=f"{name}, {number}")
    # what a damaged file makes of pypdf is not only its own errors
    except (
        PyPdfError,
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
    ) as error:
        raise UnreadableFile(
            f"{name} was left out: it is no PDF that can be read, or it is damaged "
            f"({type(error).__name__}). Open it in a viewer and save it again."
        ) from error
    return passages


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
