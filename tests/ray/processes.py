"""Programs of these tests that run until their input ends."""

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
        assert process.wait() == 0
