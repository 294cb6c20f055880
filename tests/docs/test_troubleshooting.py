"""docs/troubleshooting.md names what our errors and warnings really say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
FILLED_IN = re.compile(
    r"\.\.\.|'[^']*'|`[^`]*`|\d+(?:\.\d+)?|\S+\.(?:json|onnx)\b|\bstr\b|\b\w+Type\b"
)


def said() -> str:
    """Every text in the package's code, a line each, with a mark for what is filled in."""
    texts = []
    for file in sorted((ROOT / "bge_rerank_integrations").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub("%[sd]", "\0", node.value))
    return "\n".join(texts)


def rows() -> list[str]:
    """The messages in the first column; several in one cell have a slash between them."""
    cells = re.findall(r"^\| ([^|]+) \|", DOCUMENT, re.MULTILINE)
    # a status alone is HTTP's word
    cells = [c for c in cells if not re.match(r"the message|message$|-|\d{3}(,| or|$| and)", c)]
    return [one for cell in cells for one in cell.split(" / ")]


SAID = said()


def test_there_are_many() -> None:
    assert len(rows()) >= 80


@pytest.mark.parametrize("message", rows())
def test_an_error_or_warning_says_so(message: str) -> None:
    """Of what is left without what is filled in, most words stand beside each other in the code."""
    parts = [part.split() for part in FILLED_IN.split(message)]
    beside = [" ".join(part[i : i + 2]) for part in parts for i in range(len(part) - 1)]
    assert sum(two in SAID for two in beside) > len(beside) / 2, beside
