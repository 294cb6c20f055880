"""Which requests the page answers: those of its own pages, under names of this machine."""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")


def guards(host: str, *, loopback: bool) -> list[Middleware]:
    """The middleware for a page that listens on `host`, the outermost first.

    On a loopback address any other Host is refused: a web site can let its own name point to
    127.0.0.1 (DNS rebinding), and its scripts would read the files. Every address refuses requests
    that a page from elsewhere sends.
    """
    own_pages_only = Middleware(OwnPagesOnly)
    if not loopback:
        return [own_pages_only]
    known = [*THIS_MACHINE, f"[{host}]" if ":" in host else host]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=known, www_redirect=False)
    return [trusted, own_pages_only]


class OwnPagesOnly:
    """Refuses a request or websocket whose Origin is not the address it is sent to.

    A request without an Origin passes: no browser sends a POST from another page without one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or hand the request on."""
        headers = Headers(scope=scope) if scope["type"] in {"http", "websocket"} else Headers()
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host"):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse("The request comes from a page of another origin.", 403)
        await refusal(scope, receive, send)
