"""The campaign on servers, small."""

import json

from bge_rerank_integrations.remote.dialects import DIALECTS
from tests.campaigns import servers


def test_servers() -> None:
    counts = servers.campaign(20, 1)
    assert (counts["answers"], counts["pages"]) == (20 * len(DIALECTS), 2 * len(servers.RECOGNISED))
    assert min(counts["right scores"], counts["RemoteAnswerError"]) > 50
    assert counts["RemoteRefused"] > 0


def test_the_careful_reader() -> None:
    results = [{"index": i, "score": i / 4} for i in (3, 0, 1, 2)]
    tei = DIALECTS["tei"]
    assert servers.read_carefully(tei, json.dumps(results).encode()) == [0, 0.25, 0.5, 0.75]
    wrong: list[object] = [results[1:], [*results, results[0]], results[:3] + results[:1]]
    for answer in (*wrong, {}, None, "x"):
        assert servers.read_carefully(tei, json.dumps(answer).encode()) is None
