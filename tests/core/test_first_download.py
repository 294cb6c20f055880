"""What is said before a model is downloaded: how much, where to, and never a second time."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from bge_rerank_integrations.local.checkpoint import DOWNLOADED
from bge_rerank_integrations.local.first_download import readable_size
from tests.core.hub import run_with_hub, running_hub

OPEN = """
import json, sys
from bge_rerank_integrations import ModelNotFound
from bge_rerank_integrations.local.checkpoint import open_checkpoint
from bge_rerank_integrations.local.download import HubOptions
model, options = json.load(sys.stdin)
try:
    open_checkpoint(model, HubOptions(**options))
except ModelNotFound as error:
    print(error)
"""


def opened(
    address: str, folder: Path, model: str = "org/reranker", *, offline: bool = False
) -> tuple[str, list[str]]:
    """The error of a process whose hub is at an address, and what it logged of the model."""
    given = [model, {"cache_dir": str(folder)}]
    done = run_with_hub(OPEN, given, address=address, home=folder / "home", offline=offline)
    return done.stdout, [line for line in done.stderr.splitlines() if line.startswith(model)]


def wanted(folder: Path) -> list[int]:
    """The sizes of the files that a download brings."""
    return [
        file.stat().st_size
        for file in folder.rglob("*")
        if any(fnmatch(file.relative_to(folder).as_posix(), pattern) for pattern in DOWNLOADED)
    ]


def test_a_download_is_announced_once(reranker_base: Path, tmp_path: Path) -> None:
    sizes = wanted(reranker_base)
    with running_hub({"org/reranker": {"main": reranker_base}}) as hub:
        size = readable_size(sum(sizes))
        said = f"org/reranker: downloading {len(sizes)} files, {size}, to {tmp_path}, once"
        assert opened(hub.address, tmp_path) == ("", [said])
        hub.asked.clear()
        assert opened(hub.address, tmp_path) == ("", [])
        assert [path for _, path, _ in hub.asked] == ["/api/models/org/reranker/revision/main"], (
            "what is cached costs no more requests than the client's own"
        )
        hub.asked.clear()
        assert opened(hub.address, tmp_path, offline=True) == ("", [])
        assert hub.asked == []


def test_what_is_there_already_is_not_counted(reranker_base: Path, tmp_path: Path) -> None:
    with running_hub({"org/reranker": {"main": reranker_base}}) as hub:
        opened(hub.address, tmp_path)
        (weights,) = tmp_path.glob("models--*/snapshots/*/model.safetensors")
        size = readable_size(weights.stat().st_size)
        weights.resolve().unlink()
        weights.unlink()
        _, said = opened(hub.address, tmp_path)
        assert said == [f"org/reranker: downloading 1 file, {size}, to {tmp_path}, once"]
        assert weights.is_file()


def test_a_hub_that_tells_no_sizes_stops_nothing(reranker_base: Path, tmp_path: Path) -> None:
    with running_hub({"org/reranker": {"main": reranker_base}}) as hub:
        hub.tells_sizes = False
        assert opened(hub.address, tmp_path) == (
            "",
            [f"org/reranker: downloading it to {tmp_path}, once"],
        )
    assert list(tmp_path.glob("models--*/snapshots/*/model.safetensors"))


def test_nothing_is_announced_that_will_not_come(tmp_path: Path) -> None:
    with running_hub({}) as hub:
        error, said = opened(hub.address, tmp_path)
        assert error.startswith("the hub has no org/reranker")
        assert said == []
        error, said = opened(hub.address, tmp_path, offline=True)
        assert "downloads are switched off" in error
        assert said == []
        gone = hub.address
    error, said = opened(gone, tmp_path)
    assert "the hub cannot be reached" in error
    assert said == []


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (17_098_273, "17 MB"), (999_600, "1 MB"),
        (999_600_000, "1.0 GB"), (2_271_071_852, "2.3 GB"), (18_500_000_000, "18.5 GB"),
    ],
)  # fmt: skip
def test_a_size_is_told_in_decimal_units(size: int, said: str) -> None:
    assert readable_size(size) == said
