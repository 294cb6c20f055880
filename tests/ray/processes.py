"""Programs of these tests that run until their input ends."""

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

KEY_VARIABLE, KEY = "BGE_TEST_SERVE_KEY", "a-key-for-tests"


@contextmanager
def running(module: str, *arguments: str, env: dict[str, str]) -> Iterator[IO[str]]:
    """What the module prints, while it runs; at the end its input ends, and so must it with 0."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout
        process.stdin.close()
        process.stdout.read()  # a full pipe would keep it from ending
        ended = process.wait()
        assert ended == 0, f"{module} ended with {ended}"


@contextmanager
def shared_cluster() -> Iterator[dict[str, str]]:
    """The environment of a process that uses a Ray cluster of its own, with two CPUs."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_metrics_report_interval_ms": "500",
        "RAY_memory_monitor_refresh_ms": "0",  # or memory that others use ends our processes
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
            "bge_rerank_integrations.serve.proxy.middleware"
        ),
        KEY_VARIABLE: KEY,
    }
    with running("tests.ray.cluster", env=environment) as printed:
        yield {**environment, "RAY_ADDRESS": printed.readline().strip()}


def replicas(deployment: str) -> set[int]:
    """The processes of the deployment's replicas, by the title that Ray gives them.

    Only those that this process has started: another cluster may run on this machine.
    """
    title = f"ray::ServeReplica:{deployment}".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (process / "cmdline").read_bytes().startswith(title) and _is_ours(int(process.name)):
                found.add(int(process.name))
    return found


def _is_ours(process: int) -> bool:
    while process not in (0, os.getpid()):
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        process = int(stat.rpartition(")")[2].split()[1])
    return process != 0
