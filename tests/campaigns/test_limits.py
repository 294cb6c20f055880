"""The campaign on limits, small."""

from tests.campaigns import limits


def test_limits() -> None:
    counts = limits.campaign(len(limits.LIMITS), 1, pairs=40_000, characters=300_000)
    assert [counts[limit] for limit in limits.LIMITS] == [1] * len(limits.LIMITS)
    assert counts["programs with right scores"] >= 4
    assert counts["scores compared"] > 40
