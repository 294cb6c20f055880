"""An address given where a model of this machine belongs is refused, and no password is shown."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.tools.model_cards import describe_model
from tests.cli.command import run

ADDRESS = "htps://user:canary@host/a/b"
COMMANDS = {
    "models": ["models", ADDRESS],
    "doctor": ["doctor", "--model", ADDRESS],
    "export": ["export", ADDRESS, "out"],
    "rerank": ["rerank", "a query", "a passage", "--model", ADDRESS],
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


@pytest.mark.parametrize(
    "function",
    [describe_model, lambda model: export_onnx(model, "out")],
    ids=["describe", "export"],
)
def test_nor_is_it_in_python(function: Callable[[str], object]) -> None:
    with pytest.raises(InvalidInputError, match="address of a server") as caught:
        function(ADDRESS)
    assert "canary" not in str(caught.value)
