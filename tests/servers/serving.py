"""Real rerank servers as processes of this machine: how each is started, asked and stopped.

`make test-servers` installs them below `.venv-servers`. They listen on 127.0.0.1 alone, on a port
that was free, load a model of random weights, and are stopped by their own process group.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENTS = Path(__file__).parents[2] / ".venv-servers"
KEY = "not-a-secret"
MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class Kind:
    """One server program. `command` takes its environment's folder, a model and a port.

    `recognised_as` is what `dialect="auto"` makes of it, `started_in` a folder in its environment.
    `launch` tells a running server to load the model, where its command line cannot.
    """

    name: str
    dialect: str
    command: Callable[[Path, Path, int], list[str]]
    recognised_as: str
    environment: Mapping[str, str] = field(default_factory=dict)
    started_in: str = "lib"
    health: str = "/health"
    launch: Callable[[str, Path], None] | None = None
    takes_gguf: bool = False
    checks_key: bool = True

    @property
    def folder(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def installed(self) -> bool:
        return (self.folder / "ready").is_file()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers; `log` is what it has printed."""

    kind: Kind
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """Without any warning, as when memory runs out: the process and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(kind: Kind, model: Path, log: Path, *, seconds: float = 600) -> Iterator[Running]:
    """The server with `model`, from when it is healthy to the end of the block."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        **{name: value.format(log=log) for name, value in kind.environment.items()},
    }
    with log.open("wb") as written:
        process = subprocess.Popen(
            kind.command(kind.folder, model, port),
            cwd=next(kind.folder.glob(kind.started_in)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Running(kind, url, process, log)
    try:
        _wait_until_healthy(server, seconds)
        if kind.launch is not None:
            kind.launch(url, model)
        yield server
    finally:
        _stop(process)


def post(url: str, body: object, *, key: str = KEY) -> tuple[int, Any]:
    """Status and answer of a request that our own client does not send."""
    request = urllib.request.Request(
        url,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_healthy(server: Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _is_healthy(server.url + server.kind.health):
            return
        try:
            # waits for the process rather than for the clock: one that died needs no more waiting
            server.process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    told = server.log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise RuntimeError(f"{server.kind.name} did not become healthy in {seconds} s:\n{told}")


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, then ends what is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
