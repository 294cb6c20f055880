"""The files that a visitor adds and removes."""

from pathlib import Path

import pytest
from rag_chatbot.own_files import OwnFiles, change_files
from rag_chatbot.passages import Passage
from rag_chatbot.reading import Limits
from rag_chatbot.search import Index

from tests.examples.test_search import Animals

SHIPPED = Passage("lion", "A lion roars.", "lions.txt")
LIMITS = Limits(files=2, megabytes=1, characters=40)


@pytest.fixture
def shipped() -> Index:
    return Index([SHIPPED], embedder=Animals(), embedder_name="offline-embedder")


def written(folder: Path, name: str, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def texts(index: Index) -> list[str]:
    return [passage.text for passage in index.passages]


def loaded(own: OwnFiles | None) -> OwnFiles:
    assert own is not None
    return own


def test_only_new_files_are_reported_and_embedded(tmp_path: Path, shipped: Index) -> None:
    cats = written(tmp_path, "cats.txt", "A cat purrs.")
    dogs = written(tmp_path, "dogs.txt", "A dog barks.")
    steps: list[tuple[int, int]] = []
    first = change_files([cats], None, shipped)
    assert first.done == ("cats.txt: 1 passages were added.",)
    second = change_files(
        [cats, dogs], first.own, shipped, progress=lambda *step: steps.append(step)
    )
    assert (second.done, second.wrong) == (("dogs.txt: 1 passages were added.",), ())
    assert steps == [(1, 1)]
    assert texts(loaded(second.own).both) == ["A lion roars.", "A cat purrs.", "A dog barks."]


def test_my_files_only_leaves_the_shipped_texts_out(tmp_path: Path, shipped: Index) -> None:
    own = loaded(change_files([written(tmp_path, "a.txt", "A cat purrs.")], None, shipped).own)
    assert [found.passage.text for found in own.mine.search("lion", 9)] == ["A cat purrs."]
    assert "A lion roars." in [found.passage.text for found in own.both.search("lion", 9)]


def test_a_removed_file_is_found_no_more(tmp_path: Path, shipped: Index) -> None:
    paths = [written(tmp_path, f"{name}.txt", f"A {name} runs.") for name in ("cat", "dog")]
    own = change_files(paths, None, shipped).own
    fewer = change_files(paths[1:], own, shipped)
    assert fewer.done == ("cat.txt was removed.",)
    assert texts(loaded(fewer.own).mine) == ["A dog runs."]
    none = change_files([], fewer.own, shipped)
    assert (none.own, none.done) == (None, ("dog.txt was removed.",))


def test_limits_count_the_files_that_are_loaded_now(tmp_path: Path, shipped: Index) -> None:
    one, two, three = (written(tmp_path, f"{n}.txt", f"{n} " + "x" * 15) for n in range(3))
    own = change_files([one, two], None, shipped, limits=LIMITS).own
    full = change_files([one, two, three], own, shipped, limits=LIMITS)
    assert full.wrong == (
        "2.txt was left out: 2 files are loaded, which is the limit. Remove one first.",
    )
    assert list(loaded(full.own).files) == [one, two]
    exchanged = change_files([two, three], full.own, shipped, limits=LIMITS)
    assert exchanged.wrong == ()
    assert list(loaded(exchanged.own).files) == [two, three]
    long = written(tmp_path, "long.txt", "y" * 30)
    refused = change_files([two, long], exchanged.own, shipped, limits=LIMITS)
    assert refused.wrong[0].startswith(
        "long.txt was left out: with it the files would have 47 characters; the limit is 40."
    )


def test_a_file_replaces_the_one_of_its_name_whole(tmp_path: Path, shipped: Index) -> None:
    old = written(tmp_path / "old", "notes.txt", "x" * 890 + "\n\n" + "y" * 890)
    own = change_files([old], None, shipped).own
    new = written(tmp_path / "new", "notes.txt", "A cat purrs.")
    assert texts(loaded(change_files([old, new], own, shipped).own).mine) == ["A cat purrs."]


def test_a_file_that_cannot_be_read_leaves_the_others(tmp_path: Path, shipped: Index) -> None:
    good = written(tmp_path, "good.txt", "A cat purrs.")
    bad = written(tmp_path, "bad.pdf", "no PDF")
    changed = change_files([bad, good], None, shipped)
    assert list(loaded(changed.own).files) == [good]
    (wrong,) = changed.wrong
    assert wrong.startswith("bad.pdf was left out: the PDF is damaged")
