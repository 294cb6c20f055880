"""The files that a visitor has uploaded: which are loaded now, and the indexes with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_chatbot.passages import Passage
from rag_chatbot.reading import UPLOAD, Limits, UnreadableFile, read_file
from rag_chatbot.search import Index, Progress


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """The loaded files by their paths; `both` searches the shipped passages too, `mine` none."""

    files: Mapping[str, tuple[Passage, ...]]
    both: Index
    mine: Index


@dataclass(frozen=True, slots=True)
class Change:
    """The files after a change, None if none is left; what was done, and what went wrong."""

    own: OwnFiles | None
    done: tuple[str, ...]
    wrong: tuple[str, ...]


def change_files(
    paths: Sequence[str],
    before: OwnFiles | None,
    shipped: Index,
    *,
    limits: Limits = UPLOAD,
    progress: Progress | None = None,
) -> Change:
    """Load exactly the files at these paths; those that are loaded already are not read again.

    The limits count the files that are loaded now. A file replaces one of its name.
    """
    files = {} if before is None else dict(before.files)
    done = [f"{Path(path).name} was removed." for path in files if path not in paths]
    files = {path: found for path, found in files.items() if path in paths}
    wrong: list[str] = []
    for path in paths:
        if path in files:
            continue
        name = Path(path).name
        others = {other: found for other, found in files.items() if Path(other).name != name}
        try:
            found = tuple(_read(path, name, others, limits))
        except UnreadableFile as error:
            wrong.append(str(error))
            continue
        files = {**others, path: found}
        done.append(f"{name}: {len(found)} passages were added.")
    if not files:
        return Change(None, tuple(done), tuple(wrong))
    own = [passage for found in files.values() for passage in found]
    last = shipped if before is None else before.both
    both = last.over([*shipped.passages, *own], progress=progress)
    return Change(OwnFiles(files, both, both.over(own)), tuple(done), tuple(wrong))


def _read(
    path: str, name: str, others: Mapping[str, Sequence[Passage]], limits: Limits
) -> list[Passage]:
    if len(others) >= limits.files:
        raise UnreadableFile(
            f"{name} was left out: {len(others)} files are loaded, which is the limit. "
            "Remove one first."
        )
    found = read_file(Path(path), name, limits)
    loaded = sum(len(one.text) for passages in (*others.values(), found) for one in passages)
    if loaded > limits.characters:
        raise UnreadableFile(
            f"{name} was left out: with it the files would have {loaded:,} characters; the limit "
            f"is {limits.characters:,}. Remove one first."
        )
    return found
