"""Python programs run in forks of one process that has imported the large libraries already.

Most of a command's time goes into these imports. A fork has its own working directory, environment,
standard streams and exit code. The hub's client reads the environment when it is imported, so each
fork imports it anew, like libraries that start threads. A fork does not free its modules at the
end: tests of how a process ends start a process of their own.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "tokenizers",
    "safetensors.torch",
    "scipy.stats",
    "bge_rerank_integrations.cli",
    "bge_rerank_integrations.llama_index",
    "bge_rerank_integrations.langchain",
)
ROOT = Path(__file__).resolve().parent.parent


def run_python(
    *arguments: str | bytes,
    stdin: bytes = b"",
    folder: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> subprocess.CompletedProcess[str]:
    """The finished `python -m MODULE`, `python -c CODE` or `python FILE`; it writes UTF-8.

    The interpreter has read its own variables, such as PYTHONPATH and LC_ALL, and torch its own
    before they are changed: a program that is about them needs a process of its own.
    """
    with tempfile.TemporaryDirectory() as streams:
        files = [Path(streams, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin)
        request = {
            "arguments": [os.fsdecode(argument) for argument in arguments],
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "streams": [str(file) for file in files],
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, errors = (file.read_bytes().decode("utf-8") for file in files[1:])
    return subprocess.CompletedProcess(arguments, code, out, errors)


@cache
def _server() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", "from tests.forks import serve; serve()"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Fork for each request, until there are no more."""
    for library in LIBRARIES:
        with suppress(ImportError):  # in an environment without it
            importlib.import_module(library)
    gc.freeze()  # a fork's collections would copy every page
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_exit_code(**json.loads(line)))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _exit_code(**request: Any) -> int:
    code: object = 0
    try:
        _run(**request)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the interpreter catches them all
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0 if isinstance(code, int | None) else 1


def _run(
    arguments: Sequence[str], environment: Mapping[str, str], folder: str, streams: Sequence[str]
) -> None:
    for number, file in enumerate(streams):
        opened = os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)  # the old one has read requests ahead
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = list(arguments)
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")
