"""The campaign on the score cache, small."""

from tests.campaigns import score_cache


def test_score_cache() -> None:
    counts = score_cache.campaign(40, 1)
    assert (counts["files"], counts["killed writers"]) == (40, 8)
    assert [counts[kind] for kind in score_cache.DAMAGES] == [5] * 8
    assert counts["warnings"] >= 15
    assert counts["scores found"] > 1000
