"""One Ray cluster for all the tests, because starting one takes longer than most of them."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """What the environment of a process must say to use a cluster of two CPUs."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray.cluster"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield {**token, "RAY_ADDRESS": process.stdout.readline().strip()}
        process.stdin.close()
        assert process.wait() == 0
