"""Model folders for the tests, each built once for a whole run (see `tiny_models.py`)."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.ray.processes import shared_cluster

# no test fails because the machine was busy
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


SLOW = (
    "batch",  # Ray clusters
    "campaigns",
    "serve/",
    "servers",  # real rerank servers
    "cli/test_eval_layers.py",  # a process for each test
    "base/test_interrupt.py",  # interrupts at every line
    "ecosystem/test_processes.py",  # gunicorn
    "ecosystem/test_tracers.py",  # instruments a whole process, for good
    "examples/",  # whole programs, a browser, gradio
    "local/test_exit.py",  # a process for each test
    "local/test_keep_alive.py",  # waits for time to pass
    "test_mteb.py",
    "test_packaging.py",  # fresh environments
    "test_platforms.py",  # a process for each test
    "test_processors.py",  # a process for each test
    "tools/test_race.py",  # exports and times graphs
)
"""Folders and files that `make test` leaves to `make test-all`."""


TINY_MODELS = {
    *("reranker_base", "reranker_m3", "bert_reranker"),
    *("bge_embedder", "mean_embedder", "m3_embedder", "damaged"),
}


def is_slow(path: Path) -> bool:
    return path.relative_to(Path(__file__).parent).as_posix().startswith(SLOW)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without slow tests, do not even import their files: their libraries take seconds."""
    return ("not slow" in config.option.markexpr and is_slow(collection_path)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW`, and those that use a tiny model."""
    for item in items:
        named = [*getattr(item, "fixturenames", ())]
        if callspec := getattr(item, "callspec", None):  # a fixture may be asked for by its name
            named += [value for value in callspec.params.values() if isinstance(value, str)]
        if not TINY_MODELS.isdisjoint(named):
            item.add_marker(pytest.mark.torch)
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_the_main_thread() -> Iterator[None]:
    """One that is closed at the end: LlamaIndex's synchronous calls would open one and leave it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


def _tiny_model(name: str) -> Callable[[pytest.TempPathFactory], Path]:
    """A fixture: the folder of a tiny model, built once; only then torch is imported."""

    @pytest.fixture(scope="session", name=name)
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        from tests import tiny_models

        build: Callable[[Path], Path] = getattr(tiny_models, f"build_{name}")
        return build(tmp_path_factory.mktemp(name))

    return folder


reranker_base = _tiny_model("reranker_base")
reranker_m3 = _tiny_model("reranker_m3")
bert_reranker = _tiny_model("bert_reranker")
bge_embedder = _tiny_model("bge_embedder")
mean_embedder = _tiny_model("mean_embedder")
m3_embedder = _tiny_model("m3_embedder")


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of one of `tiny_models.DAMAGED`, which is not to be changed."""
    from tests import tiny_models

    built: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in built:
            built[kind] = tiny_models.DAMAGED[kind](tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a process that uses the Ray cluster shared by all tests, with two CPUs."""
    with shared_cluster() as environment:
        yield environment
