"""Running the installed command as a user does, and in installations that lack things."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.forks import run_python

MODULE = "bge_rerank_integrations.cli"
COMMAND = [sys.executable, "-m", MODULE]
# as a user's shell has it, so that a missing flush or a failing last one shows
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": ""}
ROOT = Path(__file__).resolve().parents[2]
BASE = ("numpy", "pydantic", "regex")


def run(
    *arguments: str | bytes,
    stdin: str | bytes = b"",
    command: Sequence[str] = COMMAND,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """The finished command; `stdin` is sent as UTF-8, and what comes out is read as UTF-8."""
    sent = stdin.encode() if isinstance(stdin, str) else stdin
    variables = {**ENVIRONMENT, **environment}
    if command is COMMAND and not any(name.startswith(("PYTHON", "LC_")) for name in environment):
        return run_python("-m", MODULE, *arguments, stdin=sent, environment=variables)
    done = subprocess.run(
        [*command, *arguments], input=sent, capture_output=True, env=variables, check=False
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    )


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line]


def to_json_lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def installation(folder: Path, *packages: str) -> dict[str, str]:
    """The environment in which only these packages, the base ones, and what they need, are there.

    Their files are linked into `folder` from the environment the tests run in, whose
    site-packages the interpreter is then kept from.
    """
    for name in _closure([*BASE, *packages]):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(str(file.locate()).removesuffix(str(file)) + top)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def in_terminal(*arguments: str, columns: int = 60) -> tuple[int, str]:
    """The command's exit code, and what it shows on a terminal that is so wide."""
    import pty  # absent on Windows

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**ENVIRONMENT, "COLUMNS": str(columns), "TERM": "dumb"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            read = os.read(master, 4096)
        except OSError:  # how Linux says that the other side was closed
            read = b""
        if not read:
            break
        shown += read
    os.close(master)
    return process.wait(), shown.decode("utf-8").replace("\r\n", "\n")


BARE_COMMAND = [sys.executable, "-S", "-m", "bge_rerank_integrations.cli"]


def _closure(packages: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found
