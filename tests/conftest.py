"""Model folders for the tests, each built once for a whole run (see `tiny_models.py`)."""

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny_models
from tests.ray.processes import KEY, KEY_VARIABLE, running

# no test fails because the machine was busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


SLOW = (
    "batch",  # Ray clusters
    "serve/",
    "servers",  # real rerank servers
    "examples/test_browser.py",
    "cli/test_sweep_command.py",  # a process for each test
    "ecosystem/test_processes.py",  # gunicorn
    "ecosystem/test_tracers.py",  # instruments a whole process, for good
    "examples/test_examples.py",  # whole programs
    "test_packaging.py",  # fresh environments
)
"""Folders and files that `make test` leaves to `make test-all`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_the_main_thread() -> Iterator[None]:
    """One that is closed at the end: LlamaIndex's synchronous calls would open one and leave it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(scope="session")
def reranker_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_reranker_base(tmp_path_factory.mktemp("reranker_base"))


@pytest.fixture(scope="session")
def reranker_m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_reranker_m3(tmp_path_factory.mktemp("reranker_m3"))


@pytest.fixture(scope="session")
def bert_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_bert_reranker(tmp_path_factory.mktemp("bert_reranker"))


@pytest.fixture(scope="session")
def bge_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_bge_embedder(tmp_path_factory.mktemp("bge_embedder"))


@pytest.fixture(scope="session")
def mean_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_mean_embedder(tmp_path_factory.mktemp("mean_embedder"))


@pytest.fixture(scope="session")
def m3_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_m3_embedder(tmp_path_factory.mktemp("m3_embedder"))


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of one of `tiny_models.DAMAGED`, which is not to be changed."""
    built: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in built:
            built[kind] = tiny_models.DAMAGED[kind](tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a process that uses the Ray cluster shared by all tests, with two CPUs."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_metrics_report_interval_ms": "500",
        KEY_VARIABLE: KEY,
    }
    with running("tests.ray.cluster", env=environment) as printed:
        yield {**environment, "RAY_ADDRESS": printed.readline().strip()}
