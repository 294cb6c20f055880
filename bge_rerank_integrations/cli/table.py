"""Tables of the commands: plain columns that are never cut, at any width of the terminal."""

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """A text that cannot send escape sequences to the terminal."""
    return "".join(character for character in text if character.isprintable())


def print_table(rows: Iterable[Sequence[object]], *, indent: str = "") -> None:
    """Print rows with equal numbers of cells in columns; the terminal wraps long lines."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"{indent}{line}".rstrip())
