"""What a document shows as a program's output, held against what it really prints."""

import re

NUMBER = re.compile(r"(-?\d+\.(\d+))(?:\.\.\.)?")


def assert_shown(shown: str, printed: str) -> None:
    """Assert that these lines are the printed ones; `...` stands for any number that are left out.

    A number with a point may differ by one in the last digit that is shown, for rounding, and so
    may the space between words. `0.12...` stands for a number of more digits.
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
    (words, expected), (other, found) = _read(shown), _read(printed)
    return words == other and all(
        abs(float(number) - float(value)) <= 1.001 * 10 ** -len(digits)
        for (number, digits), (value, _) in zip(expected, found, strict=True)
    )


def _read(line: str) -> tuple[str, list[tuple[str, str]]]:
    """The words, and each number with its digits behind the point."""
    return " ".join(NUMBER.sub("0.0", line).split()), NUMBER.findall(line)
