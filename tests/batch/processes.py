"""Runs as processes of their own, and the gate at which their workers wait."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start_run(
    source: Path, output: Path, loader: str = "overlap", *, cluster: dict[str, str], **options: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.batch.batch_run"),
            *(str(source), str(output), loader, json.dumps({"cpus": 1, **options})),
        ],
        cwd=ROOT,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def make_gate(folder: Path) -> Path:
    """A folder of two pipes, see `scorers.wait_at_gate`."""
    folder.mkdir()
    os.mkfifo(folder / "who")
    os.mkfifo(folder / "go")
    return folder


def next_worker(gate: Path, run: subprocess.Popen[str]) -> int:
    """The process that waits at the gate, once there is one."""
    found = worker_or_end(gate, run)
    assert found is not None, report_of(run)
    return found


def worker_or_end(gate: Path, run: subprocess.Popen[str]) -> int | None:
    """The process that waits at the gate, once there is one; None if the run ends first."""
    with os.fdopen(os.open(gate / "who", os.O_RDONLY | os.O_NONBLOCK)) as who:
        while not select.select([who], [], [], 1)[0] or not (said := who.readline()):
            if run.poll() is not None:
                return None
    return int(said)
