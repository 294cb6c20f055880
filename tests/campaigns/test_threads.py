"""The campaigns on threads and on interrupts, small."""

import pytest

from tests.campaigns import interrupts, threads


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THREADS", 8)
    monkeypatch.setattr(threads, "TASKS", 32)
    counts = threads.campaign(1, 1)
    assert (counts["forks"], counts["other children"]) == (threads.FORKS, 1)
    assert counts["rankings"] > 32
    assert min(counts["interrupts"], counts["tasks cancelled"]) > 0


# an interrupt in a callback of a weak reference is ignored
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts() -> None:
    counts = interrupts.campaign(9, 1)
    assert sum(counts[f"interrupted {kind}"] for kind in [*interrupts.CALLS, "requests"]) == 9
    assert counts["programs ended"] == 1
    assert counts["time limits"] + counts["long tasks cancelled"] == 1
