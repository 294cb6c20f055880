"""Threads, tasks, signals and children that share adapters of both frameworks.

    python -m tests.campaigns.threads --size 60 --seed 1

The size is the number of rounds, on a tiny encoder, a tiny LLM and the embedded model in turn. In
each round 64 threads rerank, with adapters of different options over one engine, and close them now
and then. At the same time 256 tasks do so and a quarter of them is cancelled, an alarm raises
KeyboardInterrupt in the main thread, and children are forked, spawned or come from a fork server.
Passes if every ranking is complete, or ends in the error that its options allow; if each score is
the one that its pair has alone; if the engines are idle at the end of each round; and if at the end
the process has few more threads, open files and megabytes than at the start: those of pools and
caches.
"""

import asyncio
import ctypes
import faulthandler
import gc
import math
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import Scorer, ScoringTimeout
from bge_rerank_integrations import langchain as for_langchain
from bge_rerank_integrations import llama_index as for_llama_index
from bge_rerank_integrations.local import engine as engines
from tests.base.forking import in_child
from tests.campaigns.command import run_campaign, time_is_up
from tests.local.llm.tiny_llms import build_gemma
from tests.tiny_models import TEXT, build_reranker_base

THREADS, TASKS, ALARMS, FORKS = 64, 256, 20, 4
HANG_SECONDS = 1800
MEGABYTES = 300
TOLERANCE = 2e-5
MODELS: dict[str, Callable[[Path], object]] = {
    "encoder": build_reranker_base,
    "llm": build_gemma,
    "offline": lambda _: "offline",
}
WINDOWS = {"long_passages": "windows", "max_length": 48}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"top_n": None},
    "best": {"top_n": 2, "normalize": False},
    "threshold": {"top_n": None, "score_threshold": 0.5},
    "cut": {"top_n": 5, "max_length": 20},
    "windows": {"top_n": 3, **WINDOWS},
    "explained": {"top_n": 3, "explain": True},
    "in time": {"top_n": None, "timeout": 0.02},
    "kept": {"top_n": None, "timeout": 0.02, "on_error": "keep"},
    "in a file": {"top_n": 4, "score_cache": "scores.db"},
    "in memory": {"top_n": None, "score_cache": ":memory:"},
    "windows in a file": {"top_n": 3, "score_cache": "scores.db", **WINDOWS},
    "small batches": {"top_n": None, "max_batch_tokens": 64},
}
LINES = TEXT.splitlines()
QUERIES = ["What is a panda?", "pressure in a tube", "什么是大熊猫？"]
PASSAGES = [*LINES[::3], *(" ".join(LINES[i : i + 6]) for i in range(0, len(LINES), 7))]
Adapter = for_langchain.BGERerank | for_llama_index.BGERerank
KINDS: tuple[type[Adapter], ...] = (for_langchain.BGERerank, for_llama_index.BGERerank)


class Found(NamedTuple):
    """What a framework's object says of a passage."""

    text: str
    score: float | None
    metadata: Mapping[str, Any]


class Again(BaseCallbackHandler):
    """Reranks during a rerank, on its thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def on_custom_event(self, *_: object, **__: object) -> None:
        self.call()


class Adapters:
    """The adapters of one model that all threads share, and the score of each pair alone."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model = model
        self.shared = {
            (kind, name): self.build(kind, name, folder) for kind in KINDS for name in OPTIONS
        }
        self.alone: dict[tuple[str, str, str], float] = {}
        for name in ("plain", "cut", "windows"):
            scorer: Scorer = self.shared[KINDS[0], name].loaded_scorer()
            for query in QUERIES:
                for passage in PASSAGES:
                    self.alone[name, query, passage] = scorer.score([(query, passage)]).item()

    def build(self, kind: type[Adapter], name: str, folder: Path) -> Adapter:
        options = {**OPTIONS[name], "include_logit": True, "keep_alive": 0.0}
        if options.get("score_cache") == "scores.db":
            options["score_cache"] = folder / "scores.db"
        device = None if self.model == "offline" else "cpu"
        return kind(model=self.model, device=device, **options)

    def close(self) -> None:
        for adapter in self.shared.values():
            adapter.close()

    def check(self, name: str, query: str, passages: Sequence[str], found: list[Found]) -> None:
        """Raise `AssertionError` unless this is the ranking of the passages for the query."""
        options = OPTIONS[name]
        of = next((one for one in ("cut", "windows") if name.startswith(one)), "plain")
        alone = {passage: self.alone[of, query, passage] for passage in passages}
        scored = [one for one in found if one.score is not None]
        raw = [float(one.metadata["rerank_raw_score"]) for one in scored]
        assert len({one.text for one in found}) == len(found), name
        assert raw == sorted(raw, reverse=True), name
        for one, score in zip(scored, raw, strict=True):
            assert abs(score - alone[one.text]) < TOLERANCE, (name, score, alone[one.text])
            shown = score if options.get("normalize") is False else 1 / (1 + math.exp(-score))
            assert one.score is not None
            assert math.isclose(one.score, shown, rel_tol=1e-6), name
        threshold = options.get("score_threshold", 0.0)
        left_out = [alone[text] for text in passages if text not in {one.text for one in found}]
        if threshold:
            assert all(score < TOLERANCE for score in left_out), name
        elif len(found) < len(passages):
            assert len(found) == options["top_n"], name
            assert max(left_out) < raw[-1] + TOLERANCE, name
        assert len(scored) == len(found) or name == "kept", name
        if options.get("explain"):
            assert all(one.metadata["rerank_evidence"] in one.text for one in found)


def ask(adapter: Adapter, query: str, passages: Sequence[str], **options: Any) -> list[Found]:
    if isinstance(adapter, for_langchain.BGERerank):
        return _documents(adapter.compress_documents(_as_documents(passages), query, **options))
    return _nodes(adapter.postprocess_nodes(_as_nodes(passages), query_str=query))


async def ask_async(
    adapter: Adapter, query: str, passages: Sequence[str], **options: Any
) -> list[Found]:
    if isinstance(adapter, for_langchain.BGERerank):
        ranked = await adapter.acompress_documents(_as_documents(passages), query, **options)
        return _documents(ranked)
    return _nodes(await adapter.apostprocess_nodes(_as_nodes(passages), query_str=query))


def _as_documents(passages: Sequence[str]) -> list[Document]:
    return [Document(page_content=text) for text in passages]


def _as_nodes(passages: Sequence[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text)) for text in passages]


def _documents(ranked: Sequence[Document]) -> list[Found]:
    return [Found(d.page_content, d.metadata["relevance_score"], d.metadata) for d in ranked]


def _nodes(ranked: Sequence[NodeWithScore]) -> list[Found]:
    return [Found(n.node.get_content(), n.score, n.node.metadata) for n in ranked]


class Round:
    """One round: its adapters, its choices at random, and its counts."""

    def __init__(self, adapters: Adapters, seed: str) -> None:
        self.adapters, self.seed = adapters, seed
        self.counts: Counter[str] = Counter()
        self.ended = threading.Event()

    def draw(
        self, rng: random.Random
    ) -> tuple[Adapter, str, tuple[str, list[str]], dict[str, Any]]:
        """An adapter, the name of its options, a query with passages, and maybe a callback."""
        kind, name = rng.choice(list(self.adapters.shared))
        question = rng.choice(QUERIES), rng.sample(PASSAGES, rng.randint(1, 8))
        again: dict[str, Any] = {}
        if rng.random() < 0.1:
            inner = partial(self.call, random.Random(rng.random()), nested=True)
            run = (lambda: asyncio.run(self.task(rng))) if rng.random() < 0.5 else inner
            again = {"callbacks": [Again(run)]}
        return self.adapters.shared[kind, name], name, question, again

    def call(self, rng: random.Random, *, nested: bool = False) -> None:
        """Rerank once, or close an adapter."""
        adapter, name, (query, passages), again = self.draw(rng)
        if rng.random() < 0.02:
            self.counts["adapters closed"] += 1
            (self.adapters if rng.random() < 0.5 else adapter).close()
            return
        with self._counted(name):
            found = ask(adapter, query, passages, **({} if nested else again))
            self.adapters.check(name, query, passages, found)
            self.counts["reranks inside others"] += nested

    async def task(self, rng: random.Random) -> None:
        adapter, name, (query, passages), again = self.draw(rng)
        with self._counted(name):
            found = await ask_async(adapter, query, passages, **again)
            self.adapters.check(name, query, passages, found)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Count a ranking, or a time limit that passed where the adapter of this name has one."""
        try:
            yield
        except ScoringTimeout:
            assert name == "in time", name
            self.counts["time limits passed"] += 1
        else:
            self.counts["rankings"] += 1

    def thread(self, number: int) -> None:
        """Rerank until the round ends."""
        rng = random.Random(f"{self.seed}/thread {number}")
        while True:
            self.call(rng)
            if self.ended.is_set():
                return

    async def tasks(self) -> None:
        rng = random.Random(f"{self.seed}/tasks")
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self.task(random.Random(f"{self.seed}/task {number}")))
            for number in range(TASKS)
        ]
        for task in rng.sample(tasks, TASKS // 4):
            loop.call_later(rng.expovariate(1 / 0.3), task.cancel)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, asyncio.CancelledError):
                self.counts["tasks cancelled"] += 1
            elif result is not None:
                raise result

    def alarms(self) -> None:
        """Rerank on the main thread, while an alarm raises there at a random moment."""
        rng = random.Random(f"{self.seed}/alarms")
        for _ in range(ALARMS):
            seconds = rng.expovariate(1 / 0.02) + 1e-6
            try:
                if rng.random() < 0.5:
                    with _alarm(seconds):
                        self.call(rng)
                else:
                    with asyncio.Runner() as runner, _alarm(seconds):
                        runner.run(self.task(rng))
            except KeyboardInterrupt:
                self.counts["interrupts"] += 1

    def children(self, context: multiprocessing.context.BaseContext | None) -> None:
        for number in range(FORKS):
            rng = random.Random(f"{self.seed}/fork {number}")
            assert in_child(lambda rng=rng: score_in_child(self.adapters, rng)) == "right"  # type: ignore[misc]
            self.counts["forks"] += 1
        if context is not None:
            arguments = (self.adapters, random.Random(f"{self.seed}/child"))
            child = context.Process(target=score_in_child, args=arguments)  # type: ignore[attr-defined]
            child.start()
            child.join(HANG_SECONDS)
            assert child.exitcode == 0, child.exitcode
            child.close()
            self.counts["other children"] += 1

    def run(self, context: multiprocessing.context.BaseContext | None) -> None:
        with ThreadPoolExecutor(THREADS) as pool, watched():
            threads = [pool.submit(self.thread, number) for number in range(THREADS)]
            try:
                asyncio.run(self.tasks())
                self.alarms()
                self.children(context)
            finally:
                self.ended.set()
            for thread in as_completed(threads):
                thread.result()
            for (process, _), engine in list(engines._engines.items()):
                if process == os.getpid():
                    engine.wait_until_idle()  # a permit that is lost makes it wait for ever


def score_in_child(adapters: Adapters, rng: random.Random) -> str:
    """Rerank with some adapters, in a process that was forked or spawned."""
    for (_, name), adapter in rng.sample(list(adapters.shared.items()), 6):
        query, passages = rng.choice(QUERIES), rng.sample(PASSAGES, 4)
        try:
            adapters.check(name, query, passages, ask(adapter, query, passages))
        except ScoringTimeout:
            assert name == "in time", name
    return "right"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def watched() -> Iterator[None]:
    """End the process, with the place of every thread, if this takes too long."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=2)  # pytest replaces sys.stderr
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def campaign(size: int, seed: int) -> Counter[str]:
    """The number of calls by how they ended; raises `AssertionError` for a wrong one."""
    counts: Counter[str] = Counter()
    contexts = [multiprocessing.get_context(kind) for kind in ("spawn", "forkserver")]
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for name, build in MODELS.items():
            place = Path(folder) / name
            place.mkdir()
            models.append(Adapters(str(build(place)), place))
            models[-1].close()
        before = _held()
        for number in range(size):
            if time_is_up():
                break
            playing = Round(models[number % len(models)], f"{seed}/{number}")
            playing.run(contexts[number % 2] if number % 3 == 0 else None)
            playing.adapters.close()
            counts += playing.counts
            counts["rounds"] += 1
        after = _held()
    for what, number in after.items():
        counts[f"{what} more"] = number - before[what]
    assert counts["threads more"] <= 80, counts  # the pools
    assert counts["open files more"] <= 8, counts
    assert counts["megabytes more"] <= MEGABYTES, counts
    return counts


def _held() -> dict[str, int]:
    """Threads, open files and memory of this process, after malloc gave back its free memory."""
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give_back is not None:
        give_back(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") // 10**6,
    }


if __name__ == "__main__":
    run_campaign("threads", campaign, size=60)
