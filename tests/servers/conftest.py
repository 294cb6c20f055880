"""A server of each kind with a reranker, started once for all tests of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.servers.gguf_model import write_gguf
from tests.servers.kinds import KINDS, LLAMA_CPP
from tests.servers.serving import Kind, Running, running

# llama.cpp's server is there in seconds and starts at once, so it is part of every test run
PARAMETERS = [
    pytest.param(kind, id=kind.name, marks=() if kind is LLAMA_CPP else pytest.mark.servers)
    for kind in KINDS
]


@pytest.fixture(scope="session", params=PARAMETERS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    if not found.installed:
        pytest.skip(f"no {found.name} here; make test-servers SERVERS={found.name} installs it")
    return found


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_served_reranker(tmp_path_factory.mktemp("served_reranker"))


@pytest.fixture(scope="session")
def served(
    kind: Kind, reranker_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    model = _for(kind, reranker_folder, folder)
    with running(kind, model, folder / "log") as server:
        yield server


@pytest.fixture
def start(kind: Kind, tmp_path: Path) -> Iterator[Callable[[Path], Running]]:
    """Starts servers of the test's own, with a model folder of its choice."""
    from contextlib import ExitStack

    with ExitStack() as opened:

        def begin(model: Path) -> Running:
            return opened.enter_context(
                running(kind, _for(kind, model, tmp_path), tmp_path / "log")
            )

        yield begin


def _for(kind: Kind, model: Path, folder: Path) -> Path:
    return write_gguf(model, folder / "model.gguf") if kind.takes_gguf else model
