"""A program may end while threads score, and score while it ends."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.llm import tiny_llms
from tests.tiny_models import build_reranker_base

MODELS: dict[str, Callable[[Path], object]] = {
    "encoder": build_reranker_base,
    "gemma": tiny_llms.MODELS["gemma"],
    "offline": lambda folder: "offline",
}
PAIRS = """
import sys, threading
from bge_rerank_integrations import load_scorer
pairs = [("what is a panda? " + str(n), "the giant panda is a bear " * 9) for n in range(40)]
"""
DAEMONS = """
scorer = load_scorer(sys.argv[1], device="cpu")
scored = threading.Barrier(5)

def work():
    scorer.score(pairs)
    scored.wait(100)
    while True:
        scorer.score(pairs)

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
scored.wait(100)
print("end of main")
"""
LATE_THREAD = """
scorer = load_scorer(sys.argv[1], device="cpu")
expected = scorer.score(pairs)

def work():
    threading.main_thread().join()
    assert abs(scorer.score(pairs) - expected).max() < 1e-5
    print("scored after main")

threading.Thread(target=work).start()
"""
AT_EXIT = """
import atexit
import torch  # imported first while the program ends, it complains of its own finalizers

def work():
    print(load_scorer(sys.argv[1], device="cpu").score(pairs).shape)

atexit.register(work)
"""

# a thread that frees a model while the interpreter ends would abort the process
KEPT = """
import atexit
load_scorer(sys.argv[1], device="cpu").score(pairs)
assert any("keep-alive" in thread.name for thread in threading.enumerate())

def left():
    print(sum("keep-alive" in thread.name for thread in threading.enumerate()), "left")

atexit.register(left)
"""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("program", "threads", "printed"),
    [
        (DAEMONS, "1", "end of main"),
        (DAEMONS, "2", "end of main"),
        (LATE_THREAD, "2", "scored after main"),
        (AT_EXIT, "2", "(40,)"),
        (KEPT, "1", "0 left"),
    ],
    ids=["daemons", "daemons, two cores", "late thread", "atexit", "kept"],
)
def test_the_program_ends_without_a_word(
    tmp_path: Path, model: str, threads: str, program: str, printed: str
) -> None:
    built = MODELS[model](tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PAIRS + program, str(built)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads},
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", printed)
