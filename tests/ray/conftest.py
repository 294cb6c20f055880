"""One Ray cluster for all the tests, because starting one takes longer than most of them."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KEY_VARIABLE, KEY = "BGE_TEST_SERVE_KEY", "a-key-for-tests"


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a process that is to use a cluster of two CPUs."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_metrics_report_interval_ms": "500",
        KEY_VARIABLE: KEY,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray.cluster"],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield {**environment, "RAY_ADDRESS": process.stdout.readline().strip()}
        process.stdin.close()
        assert process.wait() == 0
