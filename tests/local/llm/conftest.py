"""The folders of the tiny LLM rerankers, each built once for a whole run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.llm import tiny_llms


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of one of `tiny_llms.MODELS`, which is not to be changed."""
    built: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in built:
            built[name] = tiny_llms.MODELS[name](tmp_path_factory.mktemp(name))
        return built[name]

    return folder_of
