"""docs/troubleshooting.md names what our errors about servers really say."""

import ast
import re
from pathlib import Path

import pytest

from bge_rerank_integrations.remote.redaction import describe_status

ROOT = Path(__file__).resolve().parents[2]


def said() -> str:
    """Every text in the code of `remote/`, a line each, with `{}` for what is filled in."""
    texts = [describe_status(429)]
    for file in sorted((ROOT / "bge_rerank_integrations" / "remote").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def messages() -> list[str]:
    """The first cells of the section's tables, apart from those that are statuses alone."""
    document = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = document.split("### Servers: `RemoteError`\n")[1].split("\n### ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    return [c for c in cells if c != "the message says" and not re.match(r"\d{3}(,| or|$| and)", c)]


def test_there_are_many() -> None:
    assert len(messages()) >= 18


@pytest.mark.parametrize("message", messages())
def test_an_error_says_so(message: str) -> None:
    assert message in said()
