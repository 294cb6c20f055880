"""The parts that need no server: waits, the circuit, addresses, and answers gone wrong."""

import copy
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_rerank_integrations.base.address import read_address
from bge_rerank_integrations.errors import RemoteAnswerError
from bge_rerank_integrations.remote.client import (
    Circuit,
    model_status,
    read_retry_after,
    retry_wait,
)
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect, request_body
from bge_rerank_integrations.remote.messages import (
    read_answer,
    split_pairs,
    to_json,
)
from tests.remote.stand_ins import MODEL, STAND_INS


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_waits_double_up_to_the_longest_and_are_drawn_below_it() -> None:
    for tries, bound in [(1, 0.5), (2, 1.0), (3, 2.0), (5, 8.0), (6, 8.0), (50, 8.0)]:
        drawn = [retry_wait(tries, 0.5) for _ in range(200)]
        assert min(drawn) >= 0
        assert bound / 2 < max(drawn) <= bound
        assert len(set(drawn)) > 100, "clients that failed together must not come back together"
    assert 7 <= retry_wait(1, 0.5, retry_after=7.0) <= 7.5


def test_retry_after_is_seconds_or_a_date() -> None:
    assert read_retry_after("120") == 120
    assert read_retry_after(" 0 ") == 0
    assert read_retry_after("9" * 400) == 999_999_999
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert read_retry_after(in_an_hour) == pytest.approx(3600, abs=60)
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    endless = "Fri, 01 Jan 99999999999999999999 00:00:00 GMT"
    for nothing in (None, "", "soon", "-5", "1.5", "٣", endless):
        assert read_retry_after(nothing) is None


@pytest.mark.parametrize(
    ("passed_on", "status"),
    [
        *(("503", 503), ("429", 429), ("200", 424), ("", 424)),
        *(("9" * 5000, 424), ("50", 424), ("0503", 424), ("٥٠٣", 424)),
    ],
    ids=lambda value: str(value)[:9],
)
def test_a_gateway_passes_on_a_status_of_three_digits(passed_on: str, status: int) -> None:
    assert model_status(424, passed_on) == status
    assert model_status(200, passed_on) == 200


def test_a_circuit_opens_rests_and_lets_one_through() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    circuit.failed()
    circuit.failed()
    assert circuit.refusal() is None
    circuit.answered()
    for _ in range(3):
        assert circuit.refusal() is None
        circuit.failed()
    assert circuit.refusal() == 10
    clock.now += 9
    assert circuit.refusal() == 1
    clock.now += 1
    assert circuit.refusal() is None, "one goes to see"
    assert circuit.refusal() == 10, "the others wait for what it finds"
    circuit.failed()
    clock.now += 10
    assert circuit.refusal() is None
    circuit.answered()
    assert circuit.refusal() is None


@pytest.mark.parametrize(
    ("url", "path", "whole"),
    [
        ("http://h:80", "/rerank", "http://h:80/rerank"),
        ("http://h/", "/v1/rerank", "http://h/v1/rerank"),
        ("http://h/v1", "/v1/rerank", "http://h/v1/rerank"),
        ("http://h/v1/rerank", "/v1/rerank", "http://h/v1/rerank"),
        ("http://h/a/v1/", "/v1/rerank", "http://h/a/v1/rerank"),
        ("http://h/v1/x", "/v1/rerank", "http://h/v1/x/v1/rerank"),
        ("https://[::1]:8/score", "", "https://[::1]:8/score"),
        ("HTTPS://Host.Example/A", "/rerank", "https://host.example/A/rerank"),
    ],
)
def test_an_address_may_end_before_or_behind_the_route(url: str, path: str, whole: str) -> None:
    assert read_address(url).with_path(path) == whole


def test_a_model_in_a_path_cannot_leave_it() -> None:
    found = read_address("https://h").with_path("/ai/run/{model}", model="@cf/a?b#c d%2e")
    assert found == "https://h/ai/run/@cf/a%3Fb%23c%20d%252e"


QUERIES = st.sampled_from(["q", "ü?", "a" * 50])


@given(st.lists(st.tuples(QUERIES, st.text(max_size=80)), max_size=40), st.integers(1, 7))
def test_chunks_hold_every_pair_once_within_the_limits(
    pairs: list[tuple[str, str]], most: int
) -> None:
    pairs = [(query, text.encode("utf-8", "replace").decode()) for query, text in pairs]
    row = DIALECTS["tei"]
    chunks = split_pairs(pairs, max_documents=most, max_bytes=2000, repeats_query=False)
    found = {
        row: (chunk.query, passage)
        for chunk in chunks
        for passage, rows in chunk.passages.items()
        for row in rows
    }
    assert found == dict(enumerate(pairs))
    assert sum(len(chunk.passages) for chunk in chunks) == len(set(pairs))
    for chunk in chunks:
        assert 1 <= len(chunk.passages) <= most
        texts = list(chunk.passages)
        assert len(to_json(request_body(row, chunk.query, texts, model=None))) <= 2000


SENT = ["a b", "b", "a b c"]


def true_answer(row: Dialect) -> Any:
    body = request_body(row, "a b c", SENT, model=MODEL)
    return json.loads(json.dumps(STAND_INS[row.name].answer(body)))


def items_of(row: Dialect, answer: Any) -> list[Any]:
    for key in row.items:
        answer = answer[key]
    assert isinstance(answer, list)
    return answer


def set_score(row: Dialect, item: Any, value: Any) -> None:
    for key in row.score[:-1]:
        item = item[key]
    item[row.score[-1]] = value


@pytest.mark.parametrize("row", DIALECTS.values(), ids=DIALECTS)
def test_no_dialect_takes_an_answer_with_one_thing_wrong(row: Dialect) -> None:
    expected = read_answer(row, true_answer(row), 3)
    assert len(set(expected.tolist())) == 3

    def broken(change: Any) -> Any:
        answer = copy.deepcopy(true_answer(row))
        change(items_of(row, answer))
        return answer

    def with_score(place: int, value: Any) -> Any:
        return broken(lambda items: set_score(row, items[place], value))

    def with_index(value: Any) -> Any:
        return broken(lambda items: items[1].__setitem__(row.index, value))

    numbers: tuple[Any, ...] = (None, "0.5", True, [], {}, 1e39, -1e39, float("inf"), float("nan"))
    wrong: list[Any] = [
        broken(lambda items: items.pop()),
        broken(lambda items: items.append(copy.deepcopy(items[0]))),
        broken(lambda items: items.clear()),
        broken(lambda items: items.__setitem__(1, None)),
        broken(lambda items: items.__setitem__(1, [])),
        broken(lambda items: items.__setitem__(1, 0.5)),
        *(with_score(1, value) for value in numbers),
        None,
        [],
        {},
        "",
        0,
        {"error": "x", **(true_answer(row) if row.items else {})},
    ]
    if row.index is not None:
        first = items_of(row, true_answer(row))[0][row.index]
        wrong += [with_index(value) for value in (-1, 3, None, "1", 1.0, True, first)]
    if row.scale == "probability":
        wrong += [with_score(0, value) for value in (-0.001, 1.001, 9.5)]
    for answer in wrong:
        with pytest.raises(RemoteAnswerError):
            read_answer(row, answer, 3)
