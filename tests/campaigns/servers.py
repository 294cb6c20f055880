"""Answers of rerank servers and their information pages, broken at random, over a real socket.

    python -m tests.campaigns.servers --size 5000 --seed 1

The size is the number of answers for each protocol; there are a tenth as many pages for each server
that is recognised. Nodes, keys, numbers, bytes, lengths, statuses and content types are changed;
answers are cut, made wide or deep, and sent in pieces. Passes if each call ends in the scores that
the answer as it was sent has for its passages, or in an error of this package that shows neither
the key nor a text.
"""

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bge_rerank_integrations.errors import RerankError
from bge_rerank_integrations.remote.dialects import DIALECTS, Dialect
from bge_rerank_integrations.remote.scorer import RemoteScorer
from tests.campaigns.command import run_campaign
from tests.remote.fault_server import Asked, Connection, failing, http
from tests.remote.stand_ins import MODEL, MODELS, STAND_INS, logit, probability

KEY = "sk-zqjxvkw-31415926"
QUERY = "quokka wombat numbat"
PASSAGES = ["quokka", "quokka wombat", "wombat numbat quokka", "taipan"]
KEYS = (KEY, "zqjx", "31415926")
TEXTS = ("quokka", "wombat", "numbat", "taipan")
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 4, -1, 0.25, 7.5, -0.0, 1e39, -1e300, math.nan, math.inf,
    10**400, "", "0.5", KEY, QUERY, [], [[]], {}, {"score": 1}, [0.5, 0.5],
)  # fmt: skip
STATUSES = (201, 204, 299, 302, 400, 401, 404, 413, 422, 424, 429, 500, 501)
KINDS = ("text/html", "", "application/problem+json", "application/json; charset=x", f"text/{KEY}")
RECOGNISED = ("tei", "vllm-score", "infinity", "xinference", "llama.cpp", "sglang")
Mutation = Callable[[random.Random, Any], bytes]


def campaign(size: int, seed: int, *names: str) -> Counter[str]:
    """The number of calls of each outcome; raises `AssertionError` for a wrong one."""
    counts: Counter[str] = Counter()
    for name in names or DIALECTS:
        _answers(name, size, random.Random(f"{seed}/{name}"), counts)
    for name in (one for one in RECOGNISED if one in (names or DIALECTS)):
        _pages(name, max(1, size // 10), random.Random(f"{seed}/{name}/page"), counts)
    return counts


def _answers(name: str, size: int, rng: random.Random, counts: Counter[str]) -> None:
    # without the test at the first use, so that each request is one for the passages
    row = replace(DIALECTS[name], self_hosted=False, hosts=())
    sent: bytes = b""
    whole = True

    def fault(connection: Connection, asked: Asked) -> None:
        nonlocal sent, whole
        answer = STAND_INS[name].answer(asked.json)
        if len(STAND_INS[name].texts(asked.json)[1]) < len(PASSAGES):  # after a 413 or 422
            connection.send(http(200, json.dumps(answer).encode()))
            return
        kind = rng.choice(list(MUTATIONS))
        body = MUTATIONS[kind](rng, copy.deepcopy(answer))
        status = rng.choice(STATUSES) if rng.random() < 0.1 else 200
        content = rng.choice(KINDS) if rng.random() < 0.1 else "application/json"
        if status in (413, 422):
            body = json.dumps(answer).encode()  # the halves of the request get the right answer
        if status == 204:
            body = b""
        whole = kind == "nothing" and (status, content) == (200, "application/json")
        sent = body
        _send(connection, http(status, body, kind=content), rng)

    options: dict[str, Any] = {"model": MODELS.get(name, MODEL), "api_key": KEY, "max_retries": 0}
    with (
        failing(fault) as server,
        RemoteScorer(server.url + STAND_INS[name].base, dialect=row, **options) as scorer,
    ):
        for _ in range(size):
            found = _score(scorer, counts, KEYS + TEXTS)
            counts["answers"] += 1
            assert found is not None or not whole, f"{name} refused a right answer"
            if found is not None:
                expected = read_carefully(row, sent)
                assert expected is not None, f"{name} gave scores of {sent!r}"
                assert np.allclose(found, expected, rtol=1e-6, atol=1e-6), (name, sent)


def _pages(name: str, size: int, rng: random.Random, counts: Counter[str]) -> None:
    ((path, page),) = STAND_INS[name].pages.items()
    score = logit if DIALECTS[name].scale == "logit" else probability

    def fault(connection: Connection, asked: Asked) -> None:
        if asked.body:
            body = json.dumps(STAND_INS[name].answer(asked.json)).encode()
            connection.send(http(200, body))
        elif asked.line.split()[1] == path:
            kind = rng.choice(list(MUTATIONS))
            _send(connection, http(200, MUTATIONS[kind](rng, copy.deepcopy(page))), rng)
        else:
            connection.send(http(404, b"{}"))

    with failing(fault) as server:
        for _ in range(size):
            model = rng.choice([None, MODEL])
            with RemoteScorer(server.url, model=model, api_key=KEY, max_retries=0) as scorer:
                # no text has been sent when a page is read, so its words are its own
                found = _score(scorer, counts, KEYS)
            counts["pages"] += 1
            if found is not None:
                expected = [score(QUERY, passage) for passage in PASSAGES]
                assert np.allclose(found, expected, rtol=1e-6, atol=1e-6), name


def _score(
    scorer: RemoteScorer, counts: Counter[str], secrets: tuple[str, ...]
) -> list[float] | None:
    """The scores; None if there is an error, which must be one of ours without a secret."""
    try:
        found: list[float] = scorer.score([(QUERY, passage) for passage in PASSAGES]).tolist()
    except RerankError as error:
        shown = f"{error} {error!r} {error.__cause__} {error.__context__}".casefold()
        assert not [secret for secret in secrets if secret in shown], shown
        counts[type(error).__name__] += 1
        return None
    counts["right scores"] += 1
    return found


def _send(connection: Connection, data: bytes, rng: random.Random) -> None:
    step = rng.choice([1, 7, 64]) if len(data) < 2000 and rng.random() < 0.1 else len(data)
    for start in range(0, len(data), step):
        connection.send(data[start : start + step])


def read_carefully(row: Dialect, body: bytes) -> list[float] | None:
    """The score of each passage in an answer; None if one is missing, doubtful or out of range."""
    try:
        found = json.loads(body.decode(), parse_constant=float, object_pairs_hook=_once)
        for key in row.items:
            found = found[key]
        scores: dict[int, float] = {}
        for place, item in enumerate(_of(list, found)):
            index = place if row.index is None else _of(int, item[row.index])
            score = item
            for step in row.score:
                (score,) = [score[step]] if isinstance(step, str) else _of(list, score)
            scores[index] = float(np.float32(score if type(score) is int else _of(float, score)))
            assert math.isfinite(scores[index])
            assert row.scale != "probability" or 0 <= scores[index] <= 1
        assert len(found) == len(PASSAGES)
        return [scores[index] for index in range(len(PASSAGES))]
    except (AssertionError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None


def _of(kind: type, value: Any) -> Any:
    assert type(value) is kind
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a parsed answer with each of its keys or positions."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _node(rng: random.Random, answer: Any) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 5])):
        container, key = rng.choice([*_places(answer)] or [([0], 0)])
        container[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(answer).encode()


def _shape(rng: random.Random, answer: Any) -> bytes:
    """An entry fewer, one twice, another order, or another key."""
    container, key = rng.choice([*_places(answer)])
    taken = container.pop(key)
    if isinstance(container, list):
        for _ in range(rng.choice([0, 1, 2])):
            container.insert(rng.randint(0, len(container)), copy.deepcopy(taken))
    elif rng.random() < 0.5:
        container[rng.choice(["index", "id", "score", "error", "errors", "success", "x"])] = taken
    return json.dumps(answer).encode()


def _bytes(rng: random.Random, answer: Any) -> bytes:
    body = bytearray(json.dumps(answer).encode())
    for _ in range(rng.choice([1, 1, 3, 20])):
        start = rng.randrange(len(body) + 1)
        end = start + rng.choice([0, 0, 1, 1, 8])
        new = bytes(rng.choices(b'0123456789[]{},:"\\ .-eE\x00\xff', k=rng.choice([0, 1, 1, 4])))
        body[start:end] = new
    return bytes(body)


def _cut(rng: random.Random, answer: Any) -> bytes:
    body = json.dumps(answer).encode()
    return body[: rng.randrange(len(body))]


def _large(rng: random.Random, answer: Any) -> bytes:
    """Wide, deep, or of many bytes, alone or beside the right results."""
    extra = rng.choice(
        [[[]] * 50_000, [0] * 200_000, "x" * 500_000, {str(i): i for i in range(9000)}]
    )
    for _ in range(rng.choice([0, 3, 60, 200])):
        extra = [extra]
    if isinstance(answer, dict) and rng.random() < 0.5:
        return json.dumps(answer | {"extra": extra}).encode()
    return json.dumps(extra).encode()


MUTATIONS: dict[str, Mutation] = {
    "nothing": lambda _, answer: json.dumps(answer).encode(),
    "indented": lambda _, answer: json.dumps(answer, indent=2).encode(),
    "a node": _node,
    "another node": _node,
    "the shape": _shape,
    "bytes": _bytes,
    "more bytes": _bytes,
    "cut": _cut,
    "large": _large,
}


if __name__ == "__main__":
    run_campaign("servers", campaign, size=5000)
