"""Whole batches on each core of a CPU, in place of cores that share every product.

Cores that share a product wait for the slowest of them, hundreds of times in a call; those that
have a batch each wait once, at its end. What that gains, most where other programs take turns on a
core, stands in `docs/speed.md`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.device_group import drain_together
from bge_rerank_integrations.local.engine import Engine, EngineCall
from bge_rerank_integrations.types import FloatArray

MOST_CORES = 4
"""With more, a call's last batches would leave many cores idle; not tried."""
LEAST_TOKENS = 384
"""For each core; a call of fewer ends sooner when the cores share it."""


class StreamedEngine(Engine):
    """An engine on a CPU whose larger calls run as batches side by side; see `Engine`."""

    @property
    def plan(self) -> DevicePlan:
        plan, cores = self.forward.plan, self.cores()
        if not cores:
            return plan
        reason = f"threads: from {cores * LEAST_TOKENS} tokens on, a batch on each of {cores}"
        return replace(plan, reasons=(*plan.reasons, reason))

    def cores(self) -> int:
        """How many batches run side by side: as many as the caller's threads, or 0 for one."""
        threads = torch.get_num_threads()
        return threads if 2 <= threads <= MOST_CORES and limits_one_thread() else 0

    def run_side_by_side(self, call: EngineCall) -> FloatArray | None:
        cores = self.cores()
        lengths = [len(sequence.ids) for sequence in call.sequences]
        if not cores or len(lengths) < cores or sum(lengths) < cores * LEAST_TOKENS:
            return None
        # together they hold what one batch on all cores would
        most = call.limits.max_batch_tokens or self.forward.plan.max_batch_tokens // cores
        budget = {"max_batch_tokens": even_budget(lengths, cores, most)}
        call = replace(call, limits=call.limits.model_copy(update=budget))
        where = f"{self.model} on {self.forward.plan.device}"
        return drain_together(
            [self] * cores, call, self.plan_batches(call), where, within=one_thread
        )


def even_budget(lengths: Sequence[int], cores: int, most: int) -> int:
    """Tokens of a batch, at most `most`, with which every core gets about the same number."""
    tokens = sum(lengths)
    batches = cores * -(-tokens // (cores * most))
    # a batch is full when the next sequence would not fit, so it may fall short by one
    return min(most, -(-tokens // batches) + max(lengths) - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """The calling thread computes alone: no other thread's number, now or later, is changed."""
    # torch sets each new thread up when it is first asked, which would undo what follows
    torch.get_num_threads()
    with _openmp().limit(limits=1):
        yield


@cache
def limits_one_thread() -> bool:
    """Whether `one_thread` does what it says with this build of torch."""
    before = torch.get_num_threads()
    with one_thread():
        alone = torch.get_num_threads() == 1
    return alone and torch.get_num_threads() == before


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
