"""The Chinese README says what the English one says: same parts, commands, links and tables."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


ENGLISH, CHINESE = read("README.md"), read("README.zh.md")


def prose(text: str) -> str:
    return FENCE.sub("", text)


def levels(text: str) -> list[int]:
    return [len(found[1]) for found in re.finditer(r"^(#+) ", prose(text), re.MULTILINE)]


def links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)]+)\)", prose(text))
    return [target for target in targets if target not in {"README.md", "README.zh.md"}]


def codes(text: str) -> list[str]:
    return sorted(re.findall(r"`([^`\n]+)`", prose(text)))


def rows(text: str) -> list[int]:
    """The number of cells in each row of a table."""
    return [line.count("|") for line in prose(text).splitlines() if line.startswith("|")]


def test_headings_are_as_many_and_as_deep() -> None:
    assert levels(CHINESE) == levels(ENGLISH)


def test_programs_commands_and_outputs_are_the_same() -> None:
    assert FENCE.findall(CHINESE) == FENCE.findall(ENGLISH)


def test_links_and_code_words_are_the_same() -> None:
    assert links(CHINESE) == links(ENGLISH)
    assert codes(CHINESE) == codes(ENGLISH)


def test_tables_have_the_same_shape() -> None:
    assert rows(CHINESE) == rows(ENGLISH)


def test_each_links_to_the_other() -> None:
    assert "(README.zh.md)" in ENGLISH
    assert "(README.md)" in CHINESE
