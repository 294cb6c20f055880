"""A model hub on this machine: the cache as huggingface_hub lays it out, and a server for it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.forks import run_python


def add_to_cache(cache: Path, repo: str, folder: Path, *, commit: str, branch: str = "") -> None:
    """Put a model folder into a hub cache as `commit`, and let `branch` point at it."""
    home = cache / f"models--{repo.replace('/', '--')}"
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        content = file.read_bytes()
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = home / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if branch:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit, encoding="utf-8")


@dataclass
class Hub:
    """A running hub: where it is, which repositories it has, and what it was asked for."""

    address: str
    repositories: dict[str, dict[str, Path]]
    """By id: each revision's model folder."""
    private: dict[str, str] = field(default_factory=dict)
    """By id: the token without which a repository does not exist."""
    trouble: str = ""
    """A status that it answers with, or "page", "redirect", "loop", "odd", "silent", "no commit",
    "cut", "short" or "moved"."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and token of each request."""

    @property
    def files_asked_for(self) -> set[str]:
        paths = [path.partition("/resolve/") for _, path, _ in self.asked]
        return {rest.partition("/")[2] for _, found, rest in paths if found}


@contextmanager
def running_hub(repositories: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_with_hub(
    script: str, given: object, *, address: str, home: Path, offline: bool, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """A process whose hub is at an address: the client reads it when it is imported.

    The script reads `given` as JSON from its input. A `fresh` process has imported nothing before.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUG"))}
    environment = {
        **kept,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    if fresh:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    else:
        sent = json.dumps(given).encode()
        done = run_python("-c", script, stdin=sent, environment=environment)
    assert done.returncode == 0, done.stderr
    return done


def commit_of(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        address, _, _ = self.path.partition("?")
        path = unquote(address).removeprefix("/moved")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.asked.append((self.command, unquote(address), token))
        if self._has_trouble(hub, path):
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        revisions = hub.repositories.get(repo)
        if revisions is None or hub.private.get(repo, token) != token:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        revision = rest[1] if len(rest) > 1 else "main"
        folder = revisions.get(revision) or next(
            (f for name, f in revisions.items() if commit_of(repo, name) == revision), None
        )
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        name = next(name for name, f in revisions.items() if f == folder)
        commit = commit_of(repo, name)
        if rest and rest[0] == "resolve":
            self._send_file(folder / "/".join(rest[2:]), commit)
            return
        files = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
        if rest and rest[0] == "tree":
            listing = [
                {
                    "type": "file",
                    "path": file,
                    "size": (folder / file).stat().st_size,
                    "oid": hashlib.sha1((folder / file).read_bytes()).hexdigest(),
                }
                for file in files
            ]
            self._send(200, json.dumps(listing).encode())
            return
        siblings = [{"rfilename": file} for file in files]
        info = {
            "_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": False,
            "siblings": siblings,
        }  # fmt: skip
        self._send(200, json.dumps(info).encode())

    def _has_trouble(self, hub: Hub, path: str) -> bool:
        """Answer as the hub's trouble says, if it has one that begins with the answer."""
        if hub.trouble == "silent":
            self.rfile.read()  # until the client gives up
        elif hub.trouble == "loop":
            self._send(302, b"", {"Location": self.path})
        elif hub.trouble == "redirect" and path != "/log-in":
            self._send(302, b"", {"Location": f"{hub.address}/log-in"})
        elif hub.trouble in ("page", "redirect"):
            self._send(200, b"<html>Log in to the network</html>", {"Content-Type": "text/html"})
        elif hub.trouble == "odd":
            self._send(200, b'{"siblings": [null]}')
        elif hub.trouble.isdigit():
            self._send(int(hub.trouble), b"no")
        else:
            return False
        return True

    def _send_file(self, file: Path, commit: str) -> None:
        if not file.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        trouble = hub.trouble
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        if trouble == "no commit":
            del headers["X-Repo-Commit"]
        if trouble == "moved" and not self.path.startswith("/moved"):  # as to the servers of files
            other = f"{hub.address.replace('127.0.0.1', 'localhost')}/moved{self.path}"
            size = str(len(content))
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": size, "Location": other}
            self._send(302, b"", headers | linked)
            return
        if trouble == "cut":
            headers["Content-Length"] = str(len(content))
        if trouble in ("cut", "short") and self.command == "GET" and len(content) > 100_000:
            content = content[: len(content) // 2]
        self._send(200, content, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, value in {**usual, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
