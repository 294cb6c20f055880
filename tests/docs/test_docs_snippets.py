"""README and docs: the Python in them runs, and the commands in them exist.

The hub's models stand in a made-up hub cache as small random ones of the same architecture, so
the snippets are run as they stand; only their scores differ. So are those of docs/remote.md: the
server that they ask is a stand-in, at an address of its own. Each file's Python blocks run in
order as one program, in a temporary directory; lines keep their numbers, so that a traceback
points into the document.
"""

import os
import re
import shlex
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tiny_models
from tests.cli.command import run as bge_rerank
from tests.forks import run_python
from tests.remote.serving import serving

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
HUB: dict[str, Callable[[Path], Path]] = {
    "BAAI/bge-reranker-base": tiny_models.build_reranker_base,
    "BAAI/bge-reranker-large": tiny_models.build_reranker_base,
    "BAAI/bge-reranker-v2-m3": tiny_models.build_reranker_m3,
    "BAAI/bge-small-en-v1.5": tiny_models.build_bge_embedder,
    "BAAI/bge-base-en-v1.5": tiny_models.build_bge_embedder,
    "BAAI/bge-large-en-v1.5": tiny_models.build_bge_embedder,
    "BAAI/bge-m3": tiny_models.build_m3_embedder,
}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    document: Path
    line: int  # of its first line of code
    language: str
    code: str


def blocks(document: Path, languages: set[str]) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            text.count("\n", 0, found.start(3)) + 1,
            found[2],
            textwrap.dedent(found[3]),
        )
        for found in FENCE.finditer(text)
        if found[2] in languages
    ]


def commands() -> list[tuple[str, str]]:
    """(where, command) for every command line in the shell blocks."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document, {"sh", "bash", "shell", "console"}):
            lines = block.code.replace("\\\n", "  ").splitlines()
            prompt = block.language == "console"
            for number, line in enumerate(lines, start=block.line):
                command = line.removeprefix("$ ")
                if command.strip() and not command.startswith("#") and (command != line) >= prompt:
                    found.append((f"{document.relative_to(ROOT)}:{number}", command))
    return found


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("hub")
    commit = "0" * 40
    for model, build in HUB.items():
        repository = cache / f"models--{model.replace('/', '--')}"
        build(repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return cache


def run(program: Path, cache: Path) -> str:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = run_python(str(program), folder=program.parent, environment=environment)
    assert done.returncode == 0, f"{program.name}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_python_blocks_run(document: Path, tmp_path: Path, hub_cache: Path) -> None:
    lines = [""] * (document.read_text(encoding="utf-8").count("\n") + 1)
    for block in blocks(document, {"python", "py"}):
        code = block.code.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code
    program = tmp_path / document.name
    program.write_text("\n".join(lines), encoding="utf-8")
    if document.name != "remote.md":
        run(program, hub_cache)
        return
    with serving("tei") as served:
        snippets = program.read_text(encoding="utf-8")
        program.write_text(snippets.replace("http://localhost:8080", served.url), encoding="utf-8")
        shown = run(program, hub_cache)
        # "the giant panda" has three of its words in the second passage and none in the first
        assert shown.splitlines() == ["1 0.818 1.5", "0 0.182 -1.5"]
        assert served.requests


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda value: value)
def test_commands_exist(where: str, command: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in pieces(command):
        match words:
            case ["make", *targets]:
                for target in targets:
                    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), where
            case ["pip", "install", *requirements]:
                for extra in re.findall(r"integrations\[([\w,-]+)\]", " ".join(requirements)):
                    missing = set(extra.split(",")) - set(project["optional-dependencies"])
                    assert not missing, f"{where}: there is no extra {missing}"
            case ["bge-rerank", *arguments]:
                subcommand = [word for word in arguments[:1] if not word.startswith("-")]
                shown = bge_rerank(*subcommand, "--help").stdout
                for word in arguments:
                    if word.startswith("-"):
                        assert re.search(rf"{re.escape(word)}\b", shown), f"{where}: no {word}"
            case [*_, script] if script.endswith(".py"):
                assert (ROOT / script).is_file(), f"{where}: there is no {script}"
            case _:
                pass


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, *(ROOT / name for name in ("README.zh.md", "SECURITY.md", "examples/README.md"))],
    ids=lambda document: document.name,
)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def pieces(command: str) -> list[list[str]]:
    """The simple commands of a line: it is cut at pipes, `&&`, `;` and redirections."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]
