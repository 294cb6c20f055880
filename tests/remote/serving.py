"""A stand-in of `stand_ins.py`, listening: with a key to show, and a record of what it heard."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.remote.stand_ins import STAND_INS, Refused, StandIn


class Served:
    """A running stand-in: its address, and what it has been asked."""

    def __init__(self, stand_in: StandIn, *, key: str | None = None) -> None:
        self.stand_in, self.key = stand_in, key
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self) -> None:
                self._reply(*served.page(self._route, self._heard(b"")))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self._reply(*served.scored(self._route, self._heard(body), body))

            @property
            def _route(self) -> str:
                return urlsplit(self.path).path  # a client that takes us for its proxy sends a URL

            def _heard(self, body: bytes) -> dict[str, str]:
                headers = {name.lower(): value for name, value in self.headers.items()}
                served.requests.append((self.command, self.path, headers, body))
                return headers

            def _reply(self, status: int, answer: Any) -> None:
                written = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(written)))
                self.end_headers()
                self.wfile.write(written)
                self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
                """Nothing: what was asked is in `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{self.stand_in.base}"

    def page(self, path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
        if not self._let_in(headers):
            return 401, {"error": "no"}
        found = self.stand_in.pages.get(path)
        return (404, {"detail": "Not Found"}) if found is None else (200, found)

    def scored(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        if not self._let_in(headers):
            return 401, {"error": {"message": f"Incorrect API key provided: {self.key}"}}
        if path != self.stand_in.route:
            return 404, {"detail": "Not Found"}
        try:
            return 200, self.stand_in.answer(json.loads(body))
        except Refused as refused:
            return refused.status, refused.body

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _let_in(self, headers: Mapping[str, str]) -> bool:
        name, prefix = self.stand_in.key_header
        return self.key is None or headers.get(name.lower()) == prefix + self.key


@contextmanager
def serving(stand_in: str | StandIn, *, key: str | None = None) -> Iterator[Served]:
    found = STAND_INS[stand_in] if isinstance(stand_in, str) else stand_in
    served = Served(found, key=key)
    try:
        yield served
    finally:
        served.close()
