"""Shared by two examples: a reranker served by Ray Serve on this machine, while a block runs."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import ray
from ray import serve

from bge_rerank_integrations.serve.app import ServeSettings, rerank_app

KEY_VARIABLE = "RERANK_SERVE_KEY"
PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


class Server(NamedTuple):
    """The server's address, and the key that it requires."""

    url: str
    key: str


@contextmanager
def serving(model: str, *names: str) -> Iterator[Server]:
    """A server of that model, which requests may also call by these names."""
    # the replicas, which this process starts, find the key in their environment
    key = os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(16))
    # Ray's proxies also find there the answer for requests that were lost with a process
    os.environ[PROXY_VARIABLE] = "bge_rerank_integrations.serve.proxy.middleware"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = ServeSettings(model=model, served_names=names, api_key_variable=KEY_VARIABLE)
        serve.run(rerank_app(settings))
        yield Server(f"http://127.0.0.1:{port}", key)
    finally:
        ray.shutdown()


def free_port() -> int:
    """A free port; a real service has a fixed one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port
