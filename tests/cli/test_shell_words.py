"""Messages of the shell name its own options, exit codes are the usual ones, and no traceback."""

import subprocess
from pathlib import Path

import pytest

from bge_rerank_integrations import __version__
from bge_rerank_integrations.cli import in_shell_words
from tests.cli.command import COMMAND, ENVIRONMENT, run

OPTIONS = {
    "top_n": ["--top-n"],
    "base_url": ["--url"],
    "device": ["--device"],
    "model": ["--model"],
    "normalize": ["--normalize", "--no-normalize"],
    "local_files_only": ["--local-files-only"],
    "score_threshold": ["--threshold"],
}


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("top_n is 0; at least 1, or None for all", "--top-n is 0; at least 1; all if left out"),
        ("score_threshold needs normalize=False", "--threshold needs --no-normalize"),
        ("pass normalize=True", "pass --normalize"),
        ("pass local_files_only=True", "pass --local-files-only"),
        ('use model="offline", or base_url=http://host:8080.', None),
        ("device is 'gpu': leave device out", "--device is 'gpu': leave --device out"),
        ("the device plan of top_nothing in /data/top_n/top_n.json", None),
        ("Value error, base_url is wrong", "--url is wrong"),
    ],
)
def test_python_names_become_options(python: str, shell: str | None) -> None:
    if "base_url=" in python:
        shell = "use --model offline, or --url http://host:8080."
    assert in_shell_words(python, OPTIONS) == (python if shell is None else shell)


QUERY = ("rerank", "q", "a passage", "--model", "offline")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*QUERY, "--top-n", "0"), 2, "--top-n is 0; it must be a whole number from 1"),
        ((*QUERY, "--threshold", "5"), 2, "--threshold is 5.0"),
        ((*QUERY, "--threshold", "5"), 2, "--no-normalize"),
        (("rerank", "q", "a", "--url", "localhost:8080"), 2, "--url"),
        ((*QUERY, "--device", "gpu"), 2, "--device is 'gpu'; 'offline' runs on the CPU only"),
        ((*QUERY, "-1 degrees"), 2, "put -- before a text that begins with a dash"),
        ((*QUERY, "--modle", "x"), 2, "--model"),
        (("rerank", "q", "a", "--model", "./nowhere"), 1, "no folder nowhere"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else "",
)
def test_messages_speak_the_shells_language(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    for python in ("top_n", "score_threshold", "base_url", "normalize=", "None", "Traceback"):
        assert python not in done.stderr


def test_the_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_a_closed_standard_input_is_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *COMMAND, "rerank", "q", "--model", "offline"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bge-rerank: there are no passages")


def test_help_shows_whole_sentences() -> None:
    done = run("--help", COLUMNS="80")
    assert done.returncode == 0
    assert "  eval       Measure what reranking adds on judged questions.\n" in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]


def test_help_names_flags_and_no_python() -> None:
    shown = " ".join(run("rerank", "--help", COLUMNS="300").stdout.split())
    assert "Maximum tokens of a query; by default three quarters of --max-length" in shown
    assert "How many to keep; all by default." in shown
    assert "None" not in shown
