"""Middleware of Ray Serve's HTTP proxy that answers the requests of a front that died.

Ray's own answer is status 500 in plain text. A proxy loads the middleware if its environment has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=bge_rerank_integrations.serve.proxy.middleware.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bge_rerank_integrations.serve.protocol import PATHS, respond, unavailable


def middleware() -> list[Middleware]:
    """The middleware for each of Ray's HTTP proxies, which may serve other applications too."""
    return [Middleware(AnswerLostRequests)]


class AnswerLostRequests:
    """Answers status 503 if the application behind one of `PATHS` ends without an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self._app(scope, receive, watched)
        if not answered and scope["type"] == "http" and scope["path"].endswith(PATHS):
            await respond(unavailable())(scope, receive, send)
