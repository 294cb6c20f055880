"""One model on several devices: one thread per device takes the next batch when it is free.

Threads suffice, because torch releases the interpreter lock while a device computes. They need no
pickled weights, and an error in one is raised to the caller unchanged.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import replace
from itertools import count

from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import BatchRows, Engine, EngineCall, in_order
from bge_rerank_integrations.local.text.tokenizer import TokenSequence
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.types import FloatArray


class EngineGroup:
    """Engines of one model on different devices, used as one; see `Engine`.

    All engines must compute in the same number format. Batches are planned for the engine with the
    smallest budget, so a score does not depend on the device that computed it.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = tuple(engines)
        self._smallest = min(engines, key=lambda engine: engine.plan.max_batch_tokens)
        self._calls = count()
        self.model = engines[0].model
        self.fingerprint = engines[0].fingerprint
        self.tokenizer = engines[0].tokenizer

    @property
    def plan(self) -> DevicePlan:
        """The first device's plan, with the names and reasons of all."""
        plans = [engine.plan for engine in self._engines]
        devices = ", ".join(plan.device for plan in plans)
        shared = f"{len(plans)} devices: each takes the next batch when it is free"
        reasons = (*reasons_by_device(plans), shared)
        budget = self._smallest.plan.max_batch_tokens
        return replace(plans[0], device=devices, max_batch_tokens=budget, reasons=reasons)

    def release_memory(self) -> None:
        """Give cached, unused memory of every device back."""
        for engine in self._engines:
            engine.release_memory()

    def run(
        self,
        sequences: Sequence[TokenSequence],
        positions: Sequence[int],
        limits: BatchOptions,
        *,
        on_batch: Callable[[int], object] | None = None,
    ) -> FloatArray:
        """As `Engine.run`. The first error on any device ends the call on all of them."""
        call = EngineCall(sequences, positions, limits, on_batch)
        batches = self._smallest.plan_batches(call)
        # else small calls, which one device can do, would all go to the first
        turn = next(self._calls) % len(self._engines)
        engines = (self._engines[turn:] + self._engines[:turn])[: len(batches)]
        return drain_together(engines, call, batches, f"{self.model} on {self.plan.device}")


def reasons_by_device(plans: Sequence[DevicePlan]) -> tuple[str, ...]:
    """The reasons of all plans, with the device's name if there are several."""
    if len(plans) == 1:
        return plans[0].reasons
    return tuple(f"{plan.device}: {reason}" for plan in plans for reason in plan.reasons)


def drain_together(
    engines: Sequence[Engine],
    call: EngineCall,
    batches: Iterable[list[int]],
    where: str,
    *,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> FloatArray:
    """The rows of all batches, [sequences, width].

    Each engine has a thread, which runs `within` a context and takes the next batch when free. The
    first error in any thread ends the call in all.
    """
    left = deque(batches)
    stopped = threading.Event()
    errors: list[BaseException] = []
    on_batch, turn = call.on_batch, threading.Lock()

    def count_batch(sequences: int) -> None:
        with turn:  # the caller's function is called by one thread at a time
            if on_batch is not None:
                on_batch(sequences)

    call = replace(call, on_batch=count_batch)

    def take() -> list[int] | None:
        try:
            return None if stopped.is_set() else left.popleft()
        except IndexError:
            return None

    def drain(engine: Engine) -> BatchRows:
        try:
            with within():
                return engine.drain(call, iter(take, None))
        except BaseException as error:
            errors.append(error)
            stopped.set()
            raise

    with ThreadPoolExecutor(len(engines), "bge-rerank") as pool:
        # each thread sees the caller's cancellation and time limit
        parts = [pool.submit(copy_context().run, drain, engine) for engine in engines]
        try:
            for part in parts:
                part.exception()
        finally:
            stopped.set()  # also when the wait itself is interrupted
    if errors:
        raise errors[0]
    return in_order([part.result() for part in parts], len(call.sequences), where)
