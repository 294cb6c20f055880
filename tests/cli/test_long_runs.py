"""Long runs of the command: an estimate before they start, and an end at once on Ctrl-C."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest

from bge_rerank_integrations import InvalidInputError, Reranker
from bge_rerank_integrations.cli.rerank import _say_how_long
from bge_rerank_integrations.types import FloatArray, Pair
from tests.cli.command import ENVIRONMENT
from tests.fakes import WordOverlapScorer


class Slow(WordOverlapScorer):
    """Takes so many seconds a passage, and ten more the first time, by its own clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now = seconds, 0.0
        self.sizes: list[int] = []

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        self.now += len(pairs) * self.seconds + 10 * (not self.sizes)
        self.sizes.append(len(pairs))
        return super().score(pairs)


@pytest.mark.parametrize(
    ("seconds", "passages", "said"),
    [
        (0.0004, 500_000, "scoring 500,000 passages takes about 3 min"),
        (0.1, 50_000, "scoring 50,000 passages takes about 1 h 23 min"),
        (20.0, 200, "scoring 200 passages takes about 1 h 7 min"),
        (0.0005, 50_000, ""),  # 25 seconds
    ],
)
def test_an_estimate_is_shown_before_a_long_run(
    capsys: pytest.CaptureFixture[str], seconds: float, passages: int, said: str
) -> None:
    scorer = Slow(seconds)
    _say_how_long(Reranker(scorer, top_n=1), "fox", ["a fox"] * passages, clock=lambda: scorer.now)
    assert capsys.readouterr().err == (f"bge-rerank: {said}\n" if said else "")
    assert sum(scorer.sizes) <= 2 + passages / 10
    # the sample does not grow once it took a second
    assert all(size * seconds < 1 for size, _ in pairwise(scorer.sizes[1:]))


def test_an_error_is_left_to_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Refuses(WordOverlapScorer):
        def score(self, pairs: Sequence[Pair]) -> FloatArray:
            raise InvalidInputError("the pair at position 0 holds a control token")

    _say_how_long(Reranker(Refuses()), "fox", ["a fox"] * 1000)
    assert capsys.readouterr().err == ""


ENDLESS = """
import sys, threading
from bge_rerank_integrations.base.deadline import off_main_thread
from bge_rerank_integrations.cli import app, main

def batch():
    print("computing", flush=True)
    threading.Event().wait()

@app.command()
def endless():
    off_main_thread(batch)

sys.argv = ["bge-rerank", "endless"]
main()
"""


def test_ctrl_c_does_not_wait_for_the_batch_that_is_running() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"computing\n"
        child.send_signal(signal.SIGINT)
        try:
            rest, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, rest) == (130, b"")
    assert b"Traceback" not in said


def test_ctrl_c_ends_the_reading_of_an_input_that_goes_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bge_rerank_integrations.cli", "rerank", "--model", "offline"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"query": "panda", "passages": ["Pandas eat bamboo."]}\n')
        child.stdin.flush()
        assert child.stdout.readline().startswith(b'{"query": "panda", "results"')
        child.send_signal(signal.SIGINT)
        try:
            child.wait(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130
