"""Little memory, few descriptors, many pairs, long passages and many threads.

    python -m tests.campaigns.limits --size 60 --seed 1

The size is the number of programs, each with one of `LIMITS` in turn, on an embedded model and on a
small random one in turn. Each is a process of its own. Passes if a program gives the scores that
the pairs have alone and without a limit, or raises an error that says what ran out; if it then
scores without the limit; and if it never takes four gigabytes more than before. A program may also
end where Rust or the C library gets no memory: it must say so, and is counted.
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bge_rerank_integrations import InvalidInputError, load_reranker, load_scorer
from bge_rerank_integrations.errors import OutOfMemoryError, RerankError
from bge_rerank_integrations.types import FloatArray, Pair
from bge_rerank_integrations.wrappers.cache import CachedScorer
from bge_rerank_integrations.wrappers.sqlite_store import SqliteStore
from tests.campaigns.command import run_campaign, time_is_up

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("panda", "bear", "bamboo", "river", "red", "fox", "the", "lives", "in", "of")
PAIRS, CHARACTERS, THREADS = 200_000, 10_000_000, 200
MOST_MEGABYTES = 4000
COMPARED = 20
"""Pairs of a program whose scores are compared with those that they have alone."""
ENDS = (
    "memory allocation of",  # Rust
    "cannot allocate memory for thread-local data",  # the C library
)
CHILD = "import sys; from tests.campaigns.limits import program; program(*sys.argv[1:])"

Scored = tuple[Sequence[Pair], FloatArray]
Limit = Callable[[str, random.Random, ExitStack, int], Scored]


def campaign(size: int, seed: int, *, pairs: int = PAIRS, characters: int = CHARACTERS) -> Any:
    """The number of programs by how they ended; raises `AssertionError` for a wrong one."""
    from tests.tiny_models import build_bert_reranker  # which brings torch and transformers

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        models = ("offline", str(build_bert_reranker(Path(folder))))
        for number in range(size):
            if time_is_up():
                break
            limit = list(LIMITS)[number % len(LIMITS)]
            amount = pairs if limit == "many pairs" else characters
            arguments = [limit, models[number // len(LIMITS) % 2], f"{seed}/{number}", str(amount)]
            ended = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", CHILD, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            counts[limit] += 1
            if ended.returncode < 0 and any(said in ended.stderr for said in ENDS):
                counts["programs that a library ended"] += 1
                continue
            assert ended.returncode == 0, (arguments, ended.returncode, ended.stderr[-3000:])
            found = json.loads(ended.stdout.splitlines()[-1])
            counts[found["ended"]] += 1
            counts["scores compared"] += found["compared"]
            assert found["megabytes"] < MOST_MEGABYTES, (arguments, found)
            counts["megabytes at most"] = max(counts["megabytes at most"], found["megabytes"])
    return counts


def program(limit: str, model: str, seed: str, amount: str) -> None:
    """Score within the limit, then without it, and print how it went as JSON."""
    rng = random.Random(seed)
    before, ended = _peak(), "programs with right scores"
    scored: Scored = [], np.empty(0, np.float32)
    with ExitStack() as after:
        try:
            scored = LIMITS[limit](model, rng, after, int(amount))
        except RerankError as error:
            if "ran out" not in str(error) and not isinstance(error, OutOfMemoryError):
                raise
            ended = f"programs with {type(error).__name__}"
    pairs, scores = scored
    assert len(scores) == len(pairs)
    assert np.isfinite(scores).all()
    grown = _peak() - before
    scorer = load_scorer(model)
    places = rng.sample(range(len(pairs)), min(COMPARED, len(pairs)))
    for place in places:
        (alone,) = scorer.score([pairs[place]])
        assert abs(alone - scores[place]) < 1e-5, (place, alone, scores[place])
    assert scorer.score([("panda", "A panda.")])[0] > -20, "the process scores on"
    found = {"ended": ended, "compared": len(places), "megabytes": grown}
    sys.stdout.write(json.dumps(found) + "\n")


def _status(field: str) -> int:
    """A number of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) * 1024


def _peak() -> int:
    return _status("VmHWM") // 2**20


@contextmanager
def _limited(kind: int, number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def _pairs(rng: random.Random, count: int, longest: int) -> list[Pair]:
    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    return [(text(4), f"{text(longest)} {number}") for number in range(count)]


def _little_memory(model: str, rng: random.Random, after: ExitStack, _: int) -> Scored:
    """The model is loaded, or is there already, and some megabytes of addresses are left."""
    pairs = _pairs(rng, rng.randint(1, 40), rng.choice((10, 100, 5000)))
    scorer = load_scorer(model) if rng.random() < 0.6 else None
    if scorer is not None:
        scorer.score(pairs[:1])
    left = int(rng.choice((1, 4, 30, 100, 400, 700)) * rng.uniform(0.5, 1.5) * 2**20)
    after.enter_context(_limited(resource.RLIMIT_AS, _status("VmSize") + left))
    return pairs, (scorer or load_scorer(model)).score(pairs)


def _few_descriptors(model: str, rng: random.Random, after: ExitStack, _: int) -> Scored:
    """64 descriptors, of which some or all are taken, and a score cache on a disk."""
    folder = after.enter_context(tempfile.TemporaryDirectory())
    pairs = _pairs(rng, 20, 10)
    loaded = load_scorer(model) if rng.random() < 0.5 else None
    with _limited(resource.RLIMIT_NOFILE, 64):
        free = 65 - sum(1 for _ in Path("/proc/self/fd").iterdir())  # one is for this list
        count = rng.choice((0, 30, free - 6, free))
        taken = [os.open(os.devnull, os.O_RDONLY) for _number in range(min(count, free))]
        try:
            scorer = CachedScorer(load_scorer(model), SqliteStore(f"{folder}/scores.db"))
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(scorer.score, [pairs] * 8))
        finally:
            for descriptor in taken:
                os.close(descriptor)
    del loaded
    assert all(np.array_equal(one, found[0]) for one in found)
    return pairs, found[0]


def _many_pairs(model: str, rng: random.Random, _: ExitStack, count: int) -> Scored:
    """Different pairs of a few words; for the embedded model, which is slower, a hundredth."""
    pairs = _pairs(rng, count if model != "offline" else count // 100, 2)
    return pairs, load_scorer(model).score(pairs)


def _long_pair(model: str, rng: random.Random, characters: int) -> Pair:
    """A passage of whole sentences; for the embedded model of a hundredth of the length."""
    sentences = [f"{' '.join(rng.choices(WORDS, k=12))}. " for _ in range(200)]
    whole = "".join(sentences)
    return "panda", whole * (characters // (100 if model == "offline" else 1) // len(whole) + 1)


def _cut(model: str, rng: random.Random, _: ExitStack, characters: int) -> Scored:
    """A long passage, cut; where that is an error, it is refused."""
    pairs = [_long_pair(model, rng, characters)]
    refusing = load_reranker(model, long_passages="error").scorer
    try:
        raise AssertionError(refusing.score(pairs))
    except InvalidInputError:
        return pairs, load_scorer(model).score(pairs)


def _windows(model: str, rng: random.Random, _: ExitStack, characters: int) -> Scored:
    """A long passage in windows; the best one is at least as good as the best of its start."""
    query, passage = _long_pair(model, rng, characters)
    scorer = load_reranker(model, long_passages="windows").scorer
    whole, start = scorer.score([(query, passage), (query, passage[:3000])])
    assert whole >= start - 1e-5, (whole, start)
    return [], np.empty(0, np.float32)


def _explained(model: str, rng: random.Random, _: ExitStack, characters: int) -> Scored:
    """A long passage and its best sentence."""
    query, passage = _long_pair(model, rng, characters)
    (result,) = load_reranker(model, explain=True).rerank(query, [passage])
    assert result.evidence is not None
    assert passage[result.evidence.start : result.evidence.end] == result.evidence.text
    return [(query, passage)], np.array([result.raw_score], dtype=np.float32)


def _many_threads(model: str, rng: random.Random, _: ExitStack, __: int) -> Scored:
    """Threads that score at once, on one engine."""
    scorer = load_scorer(model)
    calls = [_pairs(rng, 3, 20) for _call in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(scorer.score, calls))
    return [pair for call in calls for pair in call], np.concatenate(found)


LIMITS: dict[str, Limit] = {
    "little memory": _little_memory,
    "few descriptors": _few_descriptors,
    "many pairs": _many_pairs,
    "a long passage": _cut,
    "a long passage in windows": _windows,
    "a long passage explained": _explained,
    "many threads": _many_threads,
}


if __name__ == "__main__":
    run_campaign("limits", campaign, size=60)
