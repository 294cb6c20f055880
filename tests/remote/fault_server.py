"""A server that fails on purpose: for each request, in turn, one fault of a script.

It speaks raw bytes on a loopback socket, so that it can break HTTP where a library would not let
it. The last fault of a script is repeated.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.remote.stand_ins import STAND_INS


@dataclass(frozen=True)
class Asked:
    """A request as it came; header names are lower case."""

    line: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Fault = Callable[["Connection", Asked], None]


class Connection:
    """One client's socket, with what a fault may do to it."""

    def __init__(self, accepted: socket.socket, server: "FaultServer") -> None:
        self.socket, self.server = accepted, server
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # pieces go at once

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def wait_until_left(self) -> None:
        """Say nothing until the client has closed its side or the server ends."""
        with suppress(OSError):
            while self.socket.recv(4096):
                pass
        self.server.left.set()

    def reset(self) -> None:
        """Close with RST, not FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        # closing alone does not wake a thread that is reading
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def http(status: int, body: bytes, *, kind: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(body: Any, status: int = 200, **headers: str) -> Fault:
    """Answers with the body, as JSON unless it is bytes."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda connection, asked: connection.send(http(status, written, **headers))


def right(connection: Connection, asked: Asked) -> None:
    """What text-embeddings-inference would answer: see `stand_ins.py`."""
    answer(STAND_INS["tei"].answer(asked.json))(connection, asked)


def silence(connection: Connection, asked: Asked) -> None:
    connection.wait_until_left()


def drip(connection: Connection, asked: Asked) -> None:
    """A right answer, a byte at a time, never done within any test's patience."""
    for byte in http(200, b" " * 100_000):
        connection.send(bytes([byte]))
        if connection.server.ended.wait(0.01):
            break


def reset_at_once(connection: Connection, asked: Asked) -> None:
    connection.reset()


def reset_midway(connection: Connection, asked: Asked) -> None:
    whole = http(200, json.dumps(STAND_INS["tei"].answer(asked.json)).encode())
    connection.send(whole[:-10])
    connection.reset()


def hang_up_midway(connection: Connection, asked: Asked) -> None:
    """A body shorter than its stated length, and an orderly end."""
    whole = http(200, json.dumps(STAND_INS["tei"].answer(asked.json)).encode())
    connection.send(whole[:-10])
    connection.close()


def no_http(connection: Connection, asked: Asked) -> None:
    connection.send(b"220 mail.example ESMTP\r\n")
    connection.close()


def endless(connection: Connection, asked: Asked) -> None:
    """A body that does not end; `server.sent` counts its bytes."""
    connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    block = b" " * 65536
    with suppress(OSError):
        while not connection.server.ended.is_set():
            connection.send(b"10000\r\n" + block + b"\r\n")
            connection.server.sent += len(block)
    connection.server.left.set()


@dataclass
class FaultServer:
    """Running on `url`; `asked` holds the requests in the order in which they came."""

    script: Sequence[Fault]
    host: str = "127.0.0.1"
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    heard: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._listening = socket.create_server((self.host, 0))
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._listening.getsockname()[1]}"

    def close(self) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join()
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            connection = Connection(accepted, self)
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: Connection) -> None:
        try:
            with connection.socket.makefile("rb") as stream:
                while (asked := _read(stream)) is not None:
                    with self._lock:
                        fault = self.script[min(len(self.asked), len(self.script) - 1)]
                        self.asked.append(asked)
                    self.heard.set()
                    fault(connection, asked)
        except OSError:
            return  # the client has gone, or the fault was to go
        finally:
            connection.close()


def _read(stream: Any) -> Asked | None:
    line = stream.readline().decode("latin-1").strip()
    if not line:
        return None
    headers: dict[str, str] = {}
    while header := stream.readline().decode("latin-1").strip():
        name, _, value = header.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    body = stream.read(length)
    return Asked(line, headers, body) if len(body) == length else None  # the client has gone


@contextmanager
def failing(*script: Fault, host: str = "127.0.0.1") -> Iterator[FaultServer]:
    server = FaultServer(script, host)
    try:
        yield server
    finally:
        server.close()
