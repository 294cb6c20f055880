"""One model on several devices: one thread per device takes the next batch when it is free.

Threads suffice, because torch releases the interpreter lock while a device computes. They need no
pickled weights, and an error in one is raised to the caller unchanged.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import Engine, EngineCall


class EngineGroup(Engine):
    """Engines of one model on different devices, used as one.

    All engines must compute in the same number format. Batches are planned for the engine with the
    smallest budget, so a score does not depend on the device that computed it.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        smallest = min(engines, key=lambda engine: engine.plan.max_batch_tokens)
        super().__init__(smallest.model, smallest.fingerprint, smallest.tokenizer, smallest.forward)
        self._engines = tuple(engines)
        self._calls = count()

    @property
    def plan(self) -> DevicePlan:
        """The first device's plan, with the names and reasons of all."""
        plans = [engine.plan for engine in self._engines]
        devices = ", ".join(plan.device for plan in plans)
        shared = f"{len(plans)} devices: each takes the next batch when it is free"
        reasons = (*reasons_by_device(plans), shared)
        budget = min(plan.max_batch_tokens for plan in plans)
        return replace(plans[0], device=devices, max_batch_tokens=budget, reasons=reasons)

    def release_memory(self) -> None:
        for engine in self._engines:
            engine.release_memory()

    def share(self, call: EngineCall) -> tuple[Sequence[Engine], list[list[int]]]:
        batches = self.plan_batches(call)
        # otherwise small calls, which need only one device, would all go to the first
        turn = next(self._calls) % len(self._engines)
        return (self._engines[turn:] + self._engines[:turn])[: len(batches)], batches


def reasons_by_device(plans: Sequence[DevicePlan]) -> tuple[str, ...]:
    """The reasons of all plans, with the device's name if there are several."""
    if len(plans) == 1:
        return plans[0].reasons
    return tuple(f"{plan.device}: {reason}" for plan in plans for reason in plan.reasons)
