"""Two fixtures: every scorer in turn, and every scorer that takes options."""

from collections.abc import Callable

import pytest

from bge_rerank_integrations import Scorer
from tests.contract import subjects
from tests.contract.subjects import Load


@pytest.fixture(scope="session")
def load_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Load]:
    """Gives the way to load a subject, whose model folder is built once."""
    built: dict[str, Load] = {}
    kept: list[Scorer] = []  # engines go with their last scorer, and would be read for every test

    def find(name: str) -> Load:
        if name not in built:
            built[name] = subjects.loading(name, request, tmp_path_factory)
            kept.append(built[name]())
        return built[name]

    return find


@pytest.fixture(params=subjects.NAMES)
def load(request: pytest.FixtureRequest, load_of: Callable[[str], Load]) -> Load:
    """Every scorer, the fake among them."""
    return load_of(request.param)


@pytest.fixture(params=subjects.LOCAL)
def load_local(request: pytest.FixtureRequest, load_of: Callable[[str], Load]) -> Load:
    """Every scorer that takes the options of `load_scorer`."""
    return load_of(request.param)


@pytest.fixture(params=subjects.TORCH)
def load_torch(request: pytest.FixtureRequest, load_of: Callable[[str], Load]) -> Load:
    """Every scorer that computes with torch."""
    return load_of(request.param)
