"""A server that fails in every way on a real socket: right scores, or an error that says why."""

import asyncio
import json
import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import Reranker
from bge_rerank_integrations.base.deadline import time_limit
from bge_rerank_integrations.base.trace import RerankTrace
from bge_rerank_integrations.errors import (
    InvalidInputError,
    RemoteAnswerError,
    RemoteError,
    RemoteRefused,
    RemoteUnavailable,
    ScoringTimeout,
)
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.messages import parse_json
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.remote.fault_server import (
    Asked,
    Connection,
    Fault,
    answer,
    drip,
    endless,
    failing,
    hang_up_midway,
    no_http,
    reset_at_once,
    reset_midway,
    right,
    silence,
)

TEI = replace(DIALECTS["tei"], self_hosted=False)
"""Without the two sentences that a server is tried with, so that a script meets the pairs alone."""

PAIRS = [("a b c", "a"), ("a b c", "a b"), ("a b c", "a b c"), ("a b c", "")]
SCORES = [-0.5, 0.5, 1.5, -1.5]
TRUE = [{"index": i, "score": score} for i, score in enumerate(SCORES)]


def scorer_at(url: str, **options: Any) -> RemoteScorer:
    given: dict[str, Any] = {"dialect": TEI, "first_wait": 0.001} | options
    return RemoteScorer(url, **given)


def with_change(place: int, **change: Any) -> list[dict[str, Any]]:
    return [item | change if i == place else item for i, item in enumerate(TRUE)]


WRONG: dict[str, tuple[Any, str]] = {
    "too few": (TRUE[:3], "3 results for 4 passages"),
    "too many": ([*TRUE, TRUE[0]], "5 results for 4 passages"),
    "none": ([], "0 results for 4 passages"),
    "index repeated": (with_change(1, index=0), "the index of another result to result 1"),
    "index too high": (with_change(3, index=4), "an index beyond the 4 passages to result 3"),
    "index negative": (with_change(3, index=-1), "an index beyond the 4 passages to result 3"),
    "index missing": ([{"score": 1.0}, *TRUE[1:]], "nothing for 'index' of result 0"),
    "index a string": (with_change(2, index="2"), "a str for 'index' of result 2"),
    "index a float": (with_change(2, index=2.0), "a float for 'index' of result 2"),
    "index a truth value": (with_change(1, index=True), "a bool for 'index' of result 1"),
    "score null": (with_change(1, score=None), "nothing for the score of result 1"),
    "score a string": (with_change(1, score="0.5"), "a str for the score of result 1"),
    "score a truth value": (with_change(1, score=True), "a bool for the score of result 1"),
    "score a list": (with_change(1, score=[0.5]), "a list for the score of result 1"),
    "score NaN": (with_change(1, score=math.nan), "not valid JSON"),
    "score infinite": (with_change(1, score=math.inf), "not valid JSON"),
    "score beyond float32": (with_change(1, score=1e39), "inf for the score of result 1"),
    "score beyond float64": (
        json.dumps(TRUE).replace("0.5", "1e999").encode(),
        "inf for the score of result",
    ),
    "score an endless integer": (
        json.dumps(TRUE).replace("0.5", "9" * 5000).encode(),
        "not valid JSON",
    ),
    "a key twice": (json.dumps(TRUE).replace("{", '{"score": 9,').encode(), "not valid JSON"),
    "an error inside": ({"error": "model not loaded"}, "200 with an error inside"),
    "no success": ({"success": False, "results": TRUE}, "200 with an error inside"),
    "another shape": ({"results": TRUE}, "no list of results at the top"),
    "a text": ("ok", "no list of results at the top"),
    "numbers alone": (SCORES, "nothing for 'index' of result 0"),
    "nothing": (b"", "0 bytes that are not valid JSON"),
    "half": (json.dumps(TRUE).encode()[:-5], "not valid JSON"),
    "no UTF-8": (b'[{"index": 0, "score": 1, "text": "\xff\xfe\xfa"}]', "not valid JSON"),
    "too deep": (b"[" * 100_000, "nested too deep"),
    "too wide": (b"[" + b"[]," * 300_000 + b"[]]", "more parts than its results need"),
    "too many texts": (b"[" + b'"",' * 300_000 + b'""]', "more parts than its results need"),
    "too many keys": (
        b"{" + b",".join(b'"%d":{}' % i for i in range(90_000)) + b"}",
        "more parts than its results need",
    ),
}


@pytest.mark.parametrize(("body", "said"), WRONG.values(), ids=WRONG)
def test_an_answer_that_cannot_be_right_is_an_error(body: Any, said: str) -> None:
    with failing(answer(body)) as server, scorer_at(server.url) as scorer:
        with pytest.raises(RemoteAnswerError, match=said):
            scorer.score(PAIRS)
        assert len(server.asked) == 1, "asking again would not make it right"


def test_the_order_of_the_results_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    orders = [rng.permutation(4).tolist() for _ in range(10)]
    answers = [answer([TRUE[place] for place in order]) for order in orders]
    with failing(*answers) as server, scorer_at(server.url) as scorer:
        for _ in orders:
            assert scorer.score(PAIRS).tolist() == SCORES


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>please log in</html>"),
        ("text/html", json.dumps(TRUE).encode()),
        ("", json.dumps(TRUE).encode()),
    ],
)
def test_a_page_for_people_is_an_error(kind: str, body: bytes) -> None:
    with (
        failing(answer(body, kind=kind)) as server,
        scorer_at(server.url) as scorer,
        pytest.raises(RemoteAnswerError, match="instead of JSON"),
    ):
        scorer.score(PAIRS)


@pytest.mark.parametrize("status", [201, 204, 206])
def test_only_a_200_is_an_answer(status: int) -> None:
    with (
        failing(answer(TRUE, status)) as server,
        scorer_at(server.url) as scorer,
        pytest.raises(RemoteError),
    ):
        scorer.score(PAIRS)


def test_an_answer_without_end_is_not_read_to_the_end() -> None:
    with failing(endless) as server, scorer_at(server.url) as scorer:
        with pytest.raises(RemoteAnswerError, match=r"more than 1\d{6} bytes"):
            scorer.score(PAIRS)
        assert server.left.wait(30), "the connection is still open"
        assert server.sent < 20_000_000, "sockets hold a few megabytes, not more"


def test_a_compressed_answer_was_not_asked_for() -> None:
    fault = answer(b"\x1f\x8b" + b"0" * 50, Content_Encoding="gzip")
    with failing(fault) as server, scorer_at(server.url) as scorer:
        with pytest.raises(RemoteAnswerError, match="compressed"):
            scorer.score(PAIRS)
        assert server.asked[0].headers["accept-encoding"] == "identity"


def test_the_name_of_no_compression_has_no_case() -> None:
    fault = answer(TRUE, Content_Encoding="Identity")
    with failing(fault) as server, scorer_at(server.url) as scorer:
        assert scorer.score(PAIRS).tolist() == SCORES


PASSING: dict[str, Fault] = {
    "reset at once": reset_at_once,
    "reset midway": reset_midway,
    "hung up midway": hang_up_midway,
    "no HTTP": no_http,
    **{
        str(status): answer({"error": "later"}, status) for status in (408, 429, 500, 502, 503, 504)
    },
    "429 with a wait": answer({"error": "later"}, 429, Retry_After="0"),
    "429 with a date beyond dates": answer(
        {}, 429, Retry_After="Fri, 01 Jan 99999999999999999999 00:00:00 GMT"
    ),
    "503 with a date": answer({}, 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(fault: Fault) -> None:
    with failing(fault, fault, right) as server, scorer_at(server.url) as scorer:
        assert scorer.score(PAIRS).tolist() == SCORES
        assert len(server.asked) == 3


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_and_given_up_after_the_retries(fault: Fault) -> None:
    with failing(fault) as server, scorer_at(server.url, max_retries=2) as scorer:
        with pytest.raises(RemoteUnavailable, match="did not answer after 3 tries: ") as failed:
            scorer.score(PAIRS)
        assert failed.value.partial is None
        assert len(server.asked) == 3


def test_a_failure_that_stays_is_shown_in_the_server_s_words() -> None:
    fault = answer({"error": "out of memory while reading fox"}, 500)
    with failing(fault) as server, scorer_at(server.url, max_retries=1) as scorer:
        said = "after 2 tries: 500 Internal Server Error: out of memory while reading [*]{3}$"
        with pytest.raises(RemoteUnavailable, match=said):
            scorer.score([("a", "a red fox")])
        assert len(server.asked) == 2


def test_a_500_is_not_taken_for_a_dead_server() -> None:
    broken = answer({}, 500)
    with failing(*[broken] * 4, right) as server, scorer_at(server.url, max_retries=0) as scorer:
        for _ in range(4):
            with pytest.raises(RemoteUnavailable, match="500"):
                scorer.score(PAIRS)
        assert scorer.score(PAIRS).tolist() == SCORES


def test_a_storm_of_429_is_waited_out_by_parallel_requests() -> None:
    storm = [answer({}, 429)] * 9
    pairs = [("a b c", f"a {number}") for number in range(12)]
    with failing(*storm, right) as server:
        with scorer_at(server.url, batch_size=2, max_retries=9, max_concurrency=3) as scorer:
            assert scorer.score(pairs).tolist() == [-0.5] * 12
        assert len(server.asked) == 9 + 6


@pytest.mark.parametrize("asked", ["3600", "Fri, 21 Oct 2999 07:28:00 GMT"])
def test_a_wait_longer_than_there_is_time_is_not_begun(asked: str) -> None:
    fault = answer({"error": "later"}, 429, Retry_After=asked)
    with failing(fault) as server, scorer_at(server.url) as scorer:
        with pytest.raises(
            RemoteUnavailable, match="429 Too Many Requests: later; it asks to wait"
        ):
            scorer.score(PAIRS)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RemoteRefused),
        (401, RemoteRefused),
        (403, RemoteRefused),
        (404, RemoteRefused),
        (405, RemoteRefused),
        (424, RemoteUnavailable),
        (501, RemoteUnavailable),
    ],
)
def test_what_will_not_pass_is_not_tried_again(status: int, error: type[RemoteError]) -> None:
    with failing(answer({"error": "no"}, status)) as server, scorer_at(server.url) as scorer:
        with pytest.raises(error, match=f"answered {status}"):
            scorer.score(PAIRS)
        assert len(server.asked) == 1


def test_azure_says_what_its_model_said_in_a_header() -> None:
    azure = replace(DIALECTS["azure-tei"], self_hosted=False)
    status = "ms_azureml_model_error_statuscode"
    busy = answer({}, 424, **{status: "429"})
    refused = answer({"error": "Invalid token"}, 424, **{status: "400"})
    with failing(busy, right, refused) as server:
        with scorer_at(server.url, dialect=azure) as scorer:
            assert scorer.score(PAIRS).tolist() == SCORES
            with pytest.raises(RemoteRefused, match="400 Bad Request: Invalid token"):
                scorer.score(PAIRS)
        assert len(server.asked) == 3


def test_silence_ends_with_the_read_timeout() -> None:
    with failing(silence) as server, scorer_at(server.url, read_timeout=0.1) as scorer:
        with pytest.raises(RemoteUnavailable, match=r"no data for 0\.1 s, the read_timeout"):
            scorer.score(PAIRS)
        assert len(server.asked) == 1, "a slow server gets no second copy of the work"


def test_a_dripping_answer_ends_with_the_request_timeout() -> None:
    with (
        failing(drip) as server,
        scorer_at(server.url, request_timeout=0.2) as scorer,
        pytest.raises(RemoteUnavailable, match=r"within 0\.2 s, the request_timeout"),
    ):
        scorer.score(PAIRS)


def test_nobody_listens() -> None:
    with failing(right) as server:
        url = server.url
    with (
        scorer_at(url) as scorer,
        pytest.raises(RemoteUnavailable, match="after 4 tries: no connection"),
    ):
        scorer.score(PAIRS)


def test_a_dead_server_is_left_alone_for_a_while() -> None:
    with failing(reset_at_once) as server, scorer_at(server.url, max_retries=0) as scorer:
        for _ in range(3):
            with pytest.raises(RemoteUnavailable, match="after 1 try: "):
                scorer.score(PAIRS)
        for _ in range(5):
            with pytest.raises(RemoteUnavailable, match="the next request is sent in 10 s"):
                scorer.score(PAIRS)
        assert len(server.asked) == 3


def test_a_server_that_is_there_but_busy_is_not_called_dead() -> None:
    busy = answer({}, 429)
    with failing(*[busy] * 5, right) as server, scorer_at(server.url, max_retries=0) as scorer:
        for _ in range(5):
            with pytest.raises(RemoteUnavailable, match="429"):
                scorer.score(PAIRS)
        assert scorer.score(PAIRS).tolist() == SCORES


def test_a_redirect_is_not_followed_to_another_host() -> None:
    with failing(right, host="127.0.0.2") as other:
        fault = answer(b"", 307, Location=f"{other.url}/rerank")
        with failing(fault) as server, scorer_at(server.url, api_key="sk-canary") as scorer:
            with pytest.raises(RemoteRefused, match="redirects are not followed"):
                scorer.score(PAIRS)
            assert server.asked[0].headers["authorization"] == "Bearer sk-canary"
        assert other.asked == []


def test_what_came_before_a_failure_is_kept() -> None:
    with failing(right, answer({}, 501)) as server:
        with scorer_at(server.url, batch_size=2, max_concurrency=1) as scorer:
            pairs = [*PAIRS, PAIRS[0], ("another query", "x")]
            with pytest.raises(RemoteUnavailable) as failed:
                scorer.score(pairs)
        assert len(server.asked) == 2, "no further request is begun"
    expected = np.array([-0.5, 0.5, np.nan, np.nan, -0.5, np.nan], dtype=np.float32)
    assert failed.value.partial is not None
    np.testing.assert_array_equal(failed.value.partial, expected)


def test_what_came_before_the_time_limit_is_kept() -> None:
    with failing(right, silence) as server:
        scorer = scorer_at(server.url, batch_size=2, max_concurrency=1)
        with time_limit(0.3), pytest.raises(ScoringTimeout, match="2 of 4 pairs") as late:
            scorer.score(PAIRS)
        scorer.close()
        assert server.left.wait(30), "the request goes on"
    assert late.value.partial is not None
    np.testing.assert_array_equal(late.value.partial, np.array([-0.5, 0.5, np.nan, np.nan]))


def test_without_time_nothing_is_sent() -> None:
    with failing(right) as server, scorer_at(server.url) as scorer:
        with time_limit(0), pytest.raises(ScoringTimeout, match="0 of 4 pairs") as late:
            scorer.score(PAIRS)
        assert late.value.partial is None
        assert server.asked == []


def test_a_reranker_keeps_the_retrieval_order_when_the_server_is_gone() -> None:
    """Also where the server was never reached, so that not even its dialect is known."""
    with failing(reset_at_once) as server:
        for dialect in (TEI, "auto"):
            traces: list[RerankTrace] = []
            with scorer_at(server.url, dialect=dialect, max_retries=0) as scorer:
                reranker = Reranker(scorer, on_error="keep", on_trace=traces.append)
                kept = reranker.rerank("a b", ["x", "a", "a b"])
            assert [(result.index, result.scored) for result in kept] == [
                (0, False),
                (1, False),
                (2, False),
            ]
            assert (traces[0].failure, traces[0].scale) == ("RemoteUnavailable", None)


def test_a_trace_says_which_server_answered_and_how_much_it_was_asked() -> None:
    traces: list[RerankTrace] = []
    with failing(right) as server, scorer_at(server.url, model="m") as scorer:
        Reranker(scorer, on_trace=traces.append).rerank("a b", ["a", "b", "a"])
        assert traces[0].facts == {"model": "m", "server": server.url}
    assert traces[0].counts == {"computed": 2}
    assert set(traces[0].seconds) == {"total", "computing"}
    assert traces[0].scale == "logit"


async def test_cancelling_ends_the_request() -> None:
    with failing(silence) as server, scorer_at(server.url) as scorer:
        for start in (scorer.ascore(PAIRS), Reranker(scorer).arerank("a", ["b"])):
            server.heard.clear()
            server.left.clear()
            task: asyncio.Task[Any] = asyncio.ensure_future(start)
            assert await asyncio.to_thread(server.heard.wait, 30), "nothing was asked"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.left.wait, 30), "the connection is still open"


def test_a_half_that_is_refused_names_no_text() -> None:
    """A 422 that does not depend on how many passages there are ends at one passage."""

    def echo(connection: Connection, asked: Asked) -> None:
        detail = [{"type": "string_type", "loc": ["body", "texts", 0], "input": asked.json}]
        answer({"detail": detail}, 422)(connection, asked)

    with failing(echo) as server, scorer_at(server.url) as scorer:
        with pytest.raises(RemoteRefused, match="422 Unprocessable") as refused:
            scorer.score([("the canary query", f"canary {number}") for number in range(8)])
        assert [len(asked.json["texts"]) for asked in server.asked] == [8, 4, 2, 1]
    assert "canary" not in str(refused.value)


def test_a_pair_too_large_for_any_request_is_named_by_its_position() -> None:
    with failing(right) as server, scorer_at(server.url) as scorer:
        with pytest.raises(InvalidInputError, match="position 2 takes 15") as refused:
            scorer.score([("q", "a"), ("q", "a"), ("q", "b" * 1_500_001)])
        assert refused.value.index == 2
        assert server.asked == []


def test_requests_stay_below_the_servers_bytes() -> None:
    small = replace(TEI, max_bytes=3000)
    pairs = [("a", f"a {'é' * number}") for number in range(100)]
    with failing(right) as server, scorer_at(server.url, dialect=small) as scorer:
        assert scorer.score(pairs).tolist() == [-0.5] * 100
        assert max(len(asked.body) for asked in server.asked) <= 3000
        assert len(server.asked) < 20


def test_texts_that_a_server_repeats_are_no_parts() -> None:
    """Brackets, commas and quotes in a passage, which vLLM and others send back."""
    text = '[{"a": [1, 2], "b\\": "\\"}, {}]' * 2000
    items = [{"index": 0, "score": 0.5, "text": text}]
    for body in (json.dumps(items), json.dumps(items, ensure_ascii=False, indent=1)):
        with failing(answer(body.encode())) as server, scorer_at(server.url) as scorer:
            assert scorer.score([("a", text)]).tolist() == [0.5]


def test_an_answer_too_wide_is_refused_with_little_memory() -> None:
    """Parsed whole, these 3.9 MB of JSON take about a gigabyte."""
    wide = b"[" + b"[],".join([b""] * 1_300_000) + b"0]"
    tracemalloc.start()
    try:
        for _ in range(2):
            with pytest.raises(RemoteAnswerError, match="more parts than its results need"):
                parse_json(wide, 64)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(wide)
    finally:
        tracemalloc.stop()


def test_a_long_answer_is_parsed_beside_the_event_loop() -> None:
    """The loop's pool of threads exists only once it has been given work."""
    program = """
import sys, threading
from dataclasses import replace
from bge_rerank_integrations.remote.dialects import DIALECTS
from bge_rerank_integrations.remote.scorer import RemoteScorer
scorer = RemoteScorer(sys.argv[1], dialect=replace(DIALECTS["tei"], self_hosted=False))
for _ in range(2):
    assert scorer.score([("a", "b")]).tolist() == [0.5]
    print(any(thread.name.startswith("asyncio") for thread in threading.enumerate()))
"""
    short: list[dict[str, Any]] = [{"index": 0, "score": 0.5}]
    long = [short[0] | {"text": "x" * 200_000}]
    with failing(answer(short), answer(long)) as server:
        shown = subprocess.run(
            [sys.executable, "-c", program, server.url], capture_output=True, text=True, check=True
        )
    assert shown.stdout.split() == ["False", "True"]
