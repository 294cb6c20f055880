"""Requests that Ray Serve answers with plain text, and what the application makes of them."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from bge_rerank_integrations.serve.proxy import middleware


async def gone(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's proxy when the replica of a request dies."""


def through_the_proxy(app: Any) -> TestClient:
    for added in middleware():
        app = added.cls(app, *added.args, **added.kwargs)
    return TestClient(app)


@pytest.mark.parametrize("path", ["/rerank", "/bge/v1/rerank", "/v2/rerank", "/second/info"])
def test_a_request_that_ends_without_an_answer_gets_503_in_json(path: str) -> None:
    answer = through_the_proxy(gone).post(path, json={"query": "q", "texts": ["a"]})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error_type"] == "Unavailable"


def test_other_applications_and_answers_are_left_alone() -> None:
    with pytest.raises(AssertionError):  # the test client's word for no answer
        through_the_proxy(gone).post("/translate")
    assert through_the_proxy(Starlette()).get("/rerank").status_code == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own classes
def test_an_error_of_the_model_is_json_without_the_error_s_text() -> None:
    from bge_rerank_integrations.serve.app import ServeSettings, _Front

    async def remote(*_: object) -> bytes:
        raise RayTaskError("answer", "secret", ValueError("secret"))  # type: ignore[no-untyped-call]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"query": "q", "texts": ["a"]}'}

    model: Any = SimpleNamespace(answer=SimpleNamespace(remote=remote))
    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": []}
    front = _Front(ServeSettings(model="offline"), model)
    answer = asyncio.run(front(Request(scope, receive)))
    assert answer.status_code == 500
    assert json.loads(bytes(answer.body))["error"] == "the model raised ValueError; see its log"
