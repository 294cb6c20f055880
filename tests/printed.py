"""What a document shows as a program's output, held against what it really prints."""

import re

import pytest

NUMBER = re.compile(r"-?\d+\.\d+")


def assert_shown(shown: str, printed: str) -> None:
    """Assert that these lines are the printed ones; `...` stands for any number that are left out.

    Numbers with a point may differ a little, as another processor's do, and so may the space
    between words.
    """
    left = printed.splitlines()
    skipping = False
    for line in shown.splitlines():
        if line == "...":
            skipping = True
            continue
        while skipping and left and not _same(line, left[0]):
            left.pop(0)
        assert left, f"not printed: {line}"
        assert _same(line, left[0]), f"shown: {line}\nprinted: {left[0]}"
        del left[0]
        skipping = False
    assert skipping or not left, f"printed and not shown: {left}"


def _same(shown: str, printed: str) -> bool:
    words, numbers = zip(*map(_read, (shown, printed)), strict=True)
    return words[0] == words[1] and bool(numbers[0] == pytest.approx(numbers[1], 0.02, 0.02))


def _read(line: str) -> tuple[str, list[float]]:
    return " ".join(NUMBER.sub("0.0", line).split()), [float(n) for n in NUMBER.findall(line)]
