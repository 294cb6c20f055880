"""Draw the rooms of the package and their imports, from the import graph, as a Mermaid picture.

    python scripts/draw_architecture.py          # prints the picture
    python scripts/draw_architecture.py --write  # puts it into docs/architecture.md

An arrow that follows from two others is left out. `--write` also counts the lines of the files in
the table of one call's path, rounded to tens.
"""

import re
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "bge_rerank_integrations"
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- picture: scripts/draw_architecture.py -->", "<!-- end of the picture -->"


def layers() -> list[list[str]]:
    """The rooms of each layer, from the top, as import-linter's contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    return [[room.strip(" ()") for room in layer.split("|")] for layer in contract["layers"]]


def arrows(rooms: list[str]) -> set[tuple[str, str]]:
    """(importer, imported) for each two rooms, without those that follow from others."""
    graph = grimp.build_graph(PACKAGE)
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(imported)
            if pair[0] != pair[1] and set(pair) <= set(rooms):
                found.add(pair)
    return {
        (above, below)
        for above, below in found
        if not any((above, between) in found and (between, below) in found for between in rooms)
    }


def room_of(module: str) -> str:
    """The first name below the package; the package itself has none."""
    return module.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


def picture() -> str:
    """The Mermaid source, the same for the same code."""
    floors = layers()
    lines = ["```mermaid", "flowchart TD"]
    for number, floor in enumerate(floors):
        lines += [f"  subgraph floor{number}[ ]", "    direction LR"]
        lines += [f"    {room}" for room in floor]
        lines.append("  end")
    rooms = [room for floor in floors for room in floor]
    lines += [f"  {above} --> {below}" for above, below in sorted(arrows(rooms))]
    return "\n".join([*lines, "```"])


def with_picture(text: str) -> str:
    """The document with the present picture between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{picture()}\n\n{END}{after}"


def with_counts(text: str) -> str:
    """The document with the present number of lines in each row `| `file` | lines | ...`."""

    def row(found: re.Match[str]) -> str:
        code = (ROOT / PACKAGE / found[1]).read_text(encoding="utf-8")
        return f"| `{found[1]}` | {round(len(code.splitlines()), -1)} |"

    return re.sub(r"^\| `([\w/]+\.py)` \| \d+ \|", row, text, flags=re.MULTILINE)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        written = with_counts(with_picture(DOCUMENT.read_text(encoding="utf-8")))
        DOCUMENT.write_text(written, encoding="utf-8")
    else:
        print(picture())
