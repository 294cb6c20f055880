"""The campaigns on threads and on interrupts, small."""

import pytest

from tests.campaigns import interrupts, threads


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"THREADS": 4, "TASKS": 32, "ALARMS": 10, "FORKS": 2}.items():
        monkeypatch.setattr(threads, name, number)
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
