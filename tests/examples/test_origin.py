"""Which requests are answered: by the page as it is served, and by its guards over a small app."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from rag_chatbot.origin import guards
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

JOIN = json.dumps({"data": ["panda", [], None], "fn_index": 0, "session_hash": "one"}).encode()
FORM = (
    b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\ntext\r\n--edge--\r\n"
)
REQUESTS = (
    ("GET", "/", b"", ""),
    ("GET", "/config", b"", ""),
    ("GET", "/gradio_api/startup-events", b"", ""),
    ("POST", "/gradio_api/queue/join", JOIN, "application/json"),
    ("POST", "/gradio_api/upload", FORM, "multipart/form-data; boundary=edge"),
)
FOREIGN = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.6")


def ask(address: str, request: tuple[str, str, bytes, str], **headers: str) -> tuple[int, bool]:
    """The status, and whether another origin's script may read the answer."""
    method, path, body, kind = request
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, {**headers, "Content-Type": kind})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("Access-Control-Allow-Origin") is not None


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_the_page_is_open_under_this_machine_s_names(chat_page: str, name: str) -> None:
    host = f"{name}:{urlsplit(chat_page).port}"
    for request in REQUESTS:
        assert ask(chat_page, request, Host=host, Origin=f"http://{host}")[0] == 200
        assert ask(chat_page, request, Host=name)[0] == 200


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_host_is_refused_everywhere(chat_page: str, name: str) -> None:
    preflight = ("OPTIONS", "/gradio_api/queue/join", b"", "")
    for host in (name, f"{name}:{urlsplit(chat_page).port}"):
        for request in (*REQUESTS, preflight):
            headers = {"Host": host, "Access-Control-Request-Method": "POST"}
            assert ask(chat_page, request, **headers) == (400, False)
            assert ask(chat_page, request, **headers, Origin=f"http://{host}") == (400, False)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:3000", "http://127.0.0.1", "null", "["]
)
def test_a_page_of_another_origin_is_refused(chat_page: str, origin: str) -> None:
    for request in REQUESTS:
        assert ask(chat_page, request, Origin=origin) == (403, False)


@pytest.mark.parametrize("function", ["change", "read_upload"])
def test_a_file_that_was_not_uploaded_is_not_read(
    chat_page: str, tmp_path: Path, function: str
) -> None:
    (tmp_path / "notes.txt").write_text("A secret of this house.")
    with httpx.Client(base_url=chat_page, timeout=60) as client:
        (number,) = [
            one["id"]
            for one in client.get("/config").json()["dependencies"]
            if one["api_name"] == function
        ]

        def read(path: str) -> str:
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            data = [[file], None] if function == "change" else [[file]]
            asked = {"data": data, "fn_index": number, "session_hash": "me"}
            client.post("/gradio_api/queue/join", json=asked)
            return client.get("/gradio_api/queue/data?session_hash=me").text

        sent = {"files": ("notes.txt", b"Pandas eat bamboo.")}
        (uploaded,) = client.post("/gradio_api/upload", files=sent).json()
        assert '"success":true' in read(uploaded)
        above = Path(uploaded).parent / Path(*[".."] * len(Path(uploaded).parts[1:-1]))
        for path in (str(tmp_path / "notes.txt"), f"{above}{tmp_path}/notes.txt", f"{chat_page}/"):
            answer = read(path)
            assert '"success":false' in answer, path
            assert "secret" not in answer


def guarded(host: str, *, loopback: bool) -> TestClient:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("open")
        await websocket.close()

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers["host"])

    routes = [WebSocketRoute("/socket", echo), Route("/", answer)]
    return TestClient(Starlette(routes=routes, middleware=guards(host, loopback=loopback)))


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("evil.example:7860", "http://evil.example:7860", 400),
        ("127.0.0.1:7860", "http://evil.example", 403),
    ],
)
def test_a_websocket_is_refused_as_a_request_is(host: str, origin: str, status: int) -> None:
    client = guarded("127.0.0.1", loopback=True)
    own = {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}
    with client.websocket_connect("/socket", headers=own) as socket:
        assert socket.receive_text() == "open"
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("/socket", headers={"host": host, "origin": origin}),
    ):
        pass
    assert denied.value.status_code == status


def test_other_addresses_are_open_under_the_names_that_lead_there() -> None:
    every = guarded("0.0.0.0", loopback=False)
    assert every.get("/", headers={"host": "desk.example:7860"}).text == "desk.example:7860"
    origin = {"host": "desk.example:7860", "origin": "http://evil.example"}
    assert every.get("/", headers=origin).status_code == 403
    other = guarded("127.0.0.5", loopback=True)
    assert other.get("/", headers={"host": "127.0.0.5:7860"}).status_code == 200
    assert other.get("/", headers={"host": "127.0.0.6:7860"}).status_code == 400
