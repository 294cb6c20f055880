"""HTML tables for notebooks, without a script or style."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of escaped values: floats to six digits, "" for None, `str` for anything else."""
    lines = ["<table><thead><tr>", *(f"<th>{escape(name)}</th>" for name in head)]
    lines.append("</tr></thead><tbody>")
    lines += [
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows
    ]
    return "".join(lines) + "</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))
