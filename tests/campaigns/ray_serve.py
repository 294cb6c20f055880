"""Clients of a served reranker, many of them rude, while its replicas are killed.

    python -m tests.campaigns.ray_serve --size 20000 --seed 1

The size is the number of requests, from 200 clients at once: rerank requests of both protocols,
clients that send byte by byte or leave in the middle, bodies of 50 MB, 100,000 passages, wrong
keys, and bodies that are not JSON. At each 250th request a replica is killed, of the model and of
the front in turn. Passes if each answer is JSON and right: the local model's scores, or the status
that the request deserves, or 429 or 503 with `Retry-After`.
"""

import json
import os
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx

from bge_rerank_integrations import load_reranker
from tests.campaigns.command import run_campaign, time_is_up
from tests.ray.processes import KEY, KEY_VARIABLE, replicas, running, shared_cluster

CLIENTS = 200
KILL_EVERY = 250
WORDS = ("the", "panda", "bear", "lives", "in", "mountains", "and", "eats", "bamboo", "fox")
KINDS = ("documents", "texts", "slow", "leaves", "large", "many", "no JSON", "no key")
WEIGHTS = (40, 40, 5, 5, 1, 1, 4, 4)


def campaign(size: int, seed: int, cluster: dict[str, str] | None = None) -> Counter[str]:
    """The number of answers of each kind; raises `AssertionError` for a wrong one."""
    if cluster is None:
        with shared_cluster() as environment:
            return campaign(size, seed, environment)
    with serving(cluster) as port:
        asked = _Asked(port, seed, size)
        with ThreadPoolExecutor(min(CLIENTS, size)) as pool:
            list(pool.map(asked.one, range(size)))
        # nothing that was refused or left is still counted as waiting
        assert asked.largest() == 200
        return asked.counts


@contextmanager
def serving(cluster: dict[str, str]) -> Iterator[int]:
    """The port of a served reranker."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    settings = {
        "model": "offline",
        "api_key_variable": KEY_VARIABLE,
        "cpus": 0.5,
        "max_waiting_pairs": 2000,
    }
    with running("tests.serve.serve_run", str(port), json.dumps(settings), env=cluster) as printed:
        for line in printed:
            if line.startswith("up "):
                break
        yield port


class _Asked:
    """All requests of the campaign, and what came back."""

    def __init__(self, port: int, seed: int, size: int) -> None:
        self.counts: Counter[str] = Counter()
        self._port, self._seed, self._size = port, seed, size
        self._lock = threading.Lock()
        rng = random.Random(seed)
        self._queries = [" ".join(rng.choices(WORDS, k=4)) for _ in range(10)]
        self._passages = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(60)]
        reranker = load_reranker("offline")
        self._scores = {
            (query, self._passages[result.index]): result.score
            for query in self._queries
            for result in reranker.rerank(query, self._passages)
        }

    def one(self, number: int) -> None:
        """Ask one request, and compare what comes back."""
        if time_is_up():
            return
        every = min(KILL_EVERY, self._size // 2)
        if number % every == every // 2:
            deployment = ("model", "front")[number // every % 2]
            for process in replicas(f"default:{deployment}"):
                os.kill(process, signal.SIGKILL)
                self._count(f"killed replicas of the {deployment}")
        rng = random.Random(f"{self._seed}/{number}")
        kind = rng.choices(KINDS, WEIGHTS)[0]
        query, passages = rng.choice(self._queries), rng.sample(self._passages, rng.randint(1, 8))
        body: dict[str, Any] = {"query": query, "documents": passages}
        if kind == "texts":
            body = {"query": query, "texts": passages, "return_text": True}
        if kind == "many":
            body["documents"] = ["fox"] * 100_000
        content = json.dumps(body).encode()
        if kind == "large":
            content = b" " * 50_000_000 + content
        if kind == "no JSON":
            content = content[:-1]
        if kind in ("slow", "leaves"):
            self._by_hand(content, query, passages, leaves=kind == "leaves")
            return
        try:
            answer = self._post(content, "wrong" if kind == "no key" else KEY)
        except (httpx.WriteError, httpx.ReadError):
            assert kind == "large"  # it was refused before it had been read
            self._count("large: refused while it was sent")
            return
        refused = {"large": 413, "many": 422, "no JSON": 400, "no key": 401}.get(kind)
        self._compare(answer.status_code, answer.headers, answer.content, query, passages, refused)

    def largest(self) -> int:
        """The status of a request with as many passages as are allowed."""
        passages = [self._passages[0]] * 1000
        return self._post(
            json.dumps({"query": "panda", "documents": passages}).encode()
        ).status_code

    def _post(self, content: bytes, key: str = KEY) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self._port}/v1/rerank",
            content=content,
            headers={"authorization": f"Bearer {key}"},
            timeout=300,
        )

    def _by_hand(self, content: bytes, query: str, passages: list[str], *, leaves: bool) -> None:
        head = (
            f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port), timeout=300) as connection:
            for byte in head.encode():
                connection.sendall(bytes([byte]))
            for start in range(0, len(content), 7):
                if leaves and start > len(content) // 2:
                    self._count("left in the middle")
                    return
                connection.sendall(content[start : start + 7])
            read = b"".join(iter(partial(connection.recv, 65536), b""))
        lines, _, body = read.partition(b"\r\n\r\n")
        first, *rest = lines.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in rest)
        self._compare(int(first.split()[1]), headers, body, query, passages, None)

    def _compare(
        self,
        status: int,
        headers: Any,
        content: bytes,
        query: str,
        passages: list[str],
        refused: int | None,
    ) -> None:
        self._count(f"answers with {status}")
        assert headers["content-type"] == "application/json", (status, content[:200])
        found = json.loads(content)
        if status in (429, 503):
            assert int(headers["retry-after"]) > 0
        elif refused is not None:
            assert (status, "error" in found) == (refused, True), found
        else:
            assert status == 200, content[:200]
            results = found if isinstance(found, list) else found["results"]
            assert sorted(one["index"] for one in results) == list(range(len(passages)))
            for one in results:
                score = one.get("score", one.get("relevance_score"))
                assert abs(score - self._scores[query, passages[one["index"]]]) < 1e-5

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


if __name__ == "__main__":
    run_campaign("Ray Serve", campaign, size=20_000)
