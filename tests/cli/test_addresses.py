"""An address given where a model of this machine belongs is refused, and no password is shown."""

from pathlib import Path

import pytest

from tests.cli.command import run

ADDRESS = "htps://user:canary@host/a/b"
COMMANDS = {
    "models": ["models", ADDRESS],
    "doctor": ["doctor", "--model", ADDRESS],
    "export": ["export", ADDRESS, "out"],
    "sweep": ["sweep-layers", "--model", ADDRESS, "--cutoffs", "1", "--judged", "none.jsonl"],
    "rerank": ["rerank", "a query", "a passage", "--model", ADDRESS],
    "first": ["rerank", "a query", "a passage", "--first", ADDRESS],
    "first, with a number": ["rerank", "a query", "a passage", "--first", f"{ADDRESS}:5"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_password_is_not_shown(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.jsonl").touch()
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert "canary" not in done.stdout + done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "address" in said or "a server: only this machine" in said
