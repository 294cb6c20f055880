"""docs/architecture.md shows the import graph, the folders and the path of one call as they are."""

import json
import re
import subprocess
import sys

from scripts import draw_architecture
from tests.docs.test_docs_snippets import ROOT

TEXT = draw_architecture.DOCUMENT.read_text(encoding="utf-8")
PACKAGE = ROOT / "bge_rerank_integrations"


def test_the_picture_is_of_the_import_graph() -> None:
    # else: python scripts/draw_architecture.py --write
    assert draw_architecture.with_picture(TEXT) == TEXT
    rooms = [room for layer in draw_architecture.layers() for room in layer]
    assert len(rooms) >= 15
    for room in rooms:
        assert re.search(rf"^    {room}$", TEXT, re.MULTILINE), room


def test_the_tree_has_every_folder_and_every_file_of_the_root() -> None:
    tree = TEXT[TEXT.index("## The tree") : TEXT.index("## Imports")]
    named = set(re.findall(r"(?<=  )([\w/]+(?:/|\.py))", tree))
    inner = {"text/", "torch_backend/", "onnx_backend/"}
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert {f"{path.parent.name}/" for path in PACKAGE.glob("local/*/__init__.py")} == inner
    assert named == folders | files | inner


def test_the_path_of_a_call_is_short_and_as_the_page_has_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.call_path"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = [frame.split() for line in done.stdout.splitlines() for frame in json.loads(line)]
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert {file for file, _ in frames} == {file for file, _, _ in rows}
    total = 0
    for file, said, step in rows:
        lines = len((PACKAGE / file).read_text(encoding="utf-8").splitlines())
        total += lines
        # roughly, so that not every change needs python scripts/draw_architecture.py --write
        assert abs(lines - int(said)) <= 10 + lines * 0.2, (
            f"{file} has {lines} lines: run the script"
        )
        code = (PACKAGE / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", step):
            assert re.search(rf"def {name}\b", code), f"{file} has no {name}"
    assert total <= 4500


def test_it_is_one_page() -> None:
    assert len(TEXT.split()) < 1100


def test_writing_counts_the_lines_anew() -> None:
    lines = len((PACKAGE / "types.py").read_text(encoding="utf-8").splitlines())
    found = draw_architecture.with_counts("| `types.py` | 7 | words |")
    assert found == f"| `types.py` | {round(lines, -1)} | words |"
