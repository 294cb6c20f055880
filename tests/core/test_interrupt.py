"""Ctrl-C between two batches: the call ends, and the scorer goes on being right."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from bge_rerank_integrations import load_scorer

PAIRS = [("what is a panda?", "The giant panda is a bear."), ("rivers", "The Yangtze is long.")]
INTERRUPTED = """
import json, sys
from bge_rerank_integrations import load_scorer

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
