"""A small OpenAI-compatible server: it answers with a citation, in pieces, as the real ones do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PIECES = ["Pandas ", "eat ", "bamboo ", "[1]."]


class LanguageModelServer:
    """Serves /v1/chat/completions on this machine and keeps what it was asked.

    Without streaming it answers `condensed`; with `status` every request is refused;
    while `may_answer` is clear it lets the client wait.
    """

    def __init__(self, *, condensed: str = "What do pandas eat?") -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.condensed = condensed
        self.pieces = PIECES
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(model: LanguageModelServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.requests.append(request)
            model.keys.append(self.headers["Authorization"])
            model.may_answer.wait()
            if model.status != 200:
                self._send(model.status, "application/json", b'{"error": {"message": "refused"}}')
            elif request.get("stream"):
                events = [_chunk({"role": "assistant", "content": ""}, None)]
                events += [_chunk({"content": piece}, None) for piece in model.pieces]
                events += [_chunk({}, "stop"), "[DONE]"]
                body = "".join(f"data: {event}\n\n" for event in events)
                self._send(200, "text/event-stream", body.encode())
            else:
                message = {"role": "assistant", "content": model.condensed}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                answer = {**_about("chat.completion"), "choices": [choice]}
                self._send(200, "application/json", json.dumps(answer).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            del code, size  # the test's output is for the test

    return Handler


def _about(kind: str) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 0, "model": "tiny"}


def _chunk(delta: dict[str, str], reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return json.dumps({**_about("chat.completion.chunk"), "choices": [choice]})
