"""Ctrl-C between two batches: the call ends, and the scorer goes on being right."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import bge_rerank_integrations
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base.deadline import time_limit
from tests.local.llm.tiny_llms import build_gemma

PACKAGE = str(Path(bge_rerank_integrations.__file__).parent)
PAIRS = [("what is a panda?", "The giant panda is a bear."), ("rivers", "The Yangtze is long.")]
INTERRUPTED = """
import json, sys
from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.base.deadline import time_limit
from tests.local.llm.tiny_llms import build_gemma

folder, pairs = sys.argv[1], json.loads(sys.argv[2])
scorer = load_scorer(folder, device="cpu", batch_size=4, show_progress=True)
many = [(f"{query} {number}", passage) for number in range(15_000) for query, passage in pairs]
try:
    scorer.score(many)
except KeyboardInterrupt:
    print(json.dumps(scorer.score([tuple(pair) for pair in pairs]).tolist()))
"""


def test_an_interrupted_call_ends_and_the_next_is_right(reranker_base: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(reranker_base), json.dumps(PAIRS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    with child:
        shown = b""
        while b"/30000" not in shown:  # the bar is drawn when the first batches are done
            piece = os.read(child.stderr.fileno(), 4096)
            assert piece, "it ended before it showed how far it is"
            shown += piece
        child.send_signal(signal.SIGINT)
        child.stderr.read()
        said = child.stdout.read()
    assert child.returncode == 0
    expected = load_scorer(str(reranker_base), device="cpu").score(PAIRS)
    # how each process multiplies is decided by timing, which the last digits show
    np.testing.assert_allclose(json.loads(said), expected, atol=1e-5, rtol=0)


@pytest.fixture(params=["offline", "reranker_base", "gemma"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "offline":
        return "offline"
    if request.param == "gemma":
        return str(build_gemma(tmp_path / "gemma"))
    return str(request.getfixturevalue("reranker_base"))


def interrupted_at(line: int, call: Callable[[], object]) -> bool:
    """Run `call`, and raise KeyboardInterrupt as it begins the package's line of this number.

    Signal handlers raise like that, on the main thread alone. False if there was no such line.
    """
    seen = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Callable[..., Any] | None:
        nonlocal seen
        if PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_at_any_line_leaves_the_engine_whole(
    model_folder: str,
) -> None:
    assert threading.current_thread() is threading.main_thread()
    device = None if model_folder == "offline" else "cpu"
    scorer = load_scorer(model_folder, device=device)
    expected = scorer.score(PAIRS)
    with time_limit(300):  # a permit that is lost is a ScoringTimeout, and no test that hangs
        lines = 1
        while interrupted_at(lines, lambda: scorer.score(PAIRS)):
            lines += 1
        assert lines > 20
        contexts = [copy_context() for _ in range(16)]
        with ThreadPoolExecutor(8) as others:
            # as many at once as the gate admits, on threads that were never interrupted
            for scores in others.map(lambda c: c.run(scorer.score, PAIRS), contexts):
                np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
        np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=1e-6, rtol=0)
