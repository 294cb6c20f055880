"""One Ray cluster for all the tests, because starting one takes longer than most of them."""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.ray.processes import running

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
    with running("tests.ray.cluster", env=environment) as printed:
        yield {**environment, "RAY_ADDRESS": printed.readline().strip()}
