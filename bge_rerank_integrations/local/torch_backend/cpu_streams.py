"""One batch per CPU core, instead of all cores sharing every product.

Cores that share a product wait for the slowest one, hundreds of times in a call. With a batch each,
they wait once, at the end. `docs/speed.md` has the measured gain.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

from bge_rerank_integrations.local.device import DevicePlan
from bge_rerank_integrations.local.engine import Engine, EngineCall

MAX_CORES = 4
"""With more cores, a call's last batches would leave many idle; not measured."""
MIN_TOKENS = 384
"""Per core; a shorter call ends sooner when the cores share its products."""


class StreamedEngine(Engine):
    """An engine on a CPU that runs the batches of a large call side by side; see `Engine`."""

    @property
    def plan(self) -> DevicePlan:
        plan, cores, threads = self.forward.plan, self.cores(), torch.get_num_threads()
        if cores:
            reason = f"from {cores * MIN_TOKENS} tokens on, a batch on each of {cores}"
        elif threads == 1:
            reason = "one"
        elif threads > MAX_CORES:
            reason = f"{threads} share each product; one batch per core is for at most {MAX_CORES}"
        else:
            reason = f"{threads} share each product; this torch cannot compute on one thread alone"
        return plan.because(f"threads: {reason}")

    def cores(self) -> int:
        """The number of batches side by side: the caller's number of threads, or 0 for none."""
        threads = torch.get_num_threads()
        return threads if 2 <= threads <= MAX_CORES and limits_one_thread() else 0

    def share(self, call: EngineCall) -> tuple[Sequence[Engine], list[list[int]]]:
        cores = self.cores()
        lengths = [len(sequence.ids) for sequence in call.sequences]
        if not cores or len(lengths) < cores or sum(lengths) < cores * MIN_TOKENS:
            return super().share(call)
        # together the batches are as large as one on all cores
        limit = call.limits.max_batch_tokens or self.forward.plan.max_batch_tokens // cores
        budget = {"max_batch_tokens": even_budget(lengths, cores, limit)}
        narrow = replace(call, limits=call.limits.model_copy(update=budget))
        return [self] * cores, self.plan_batches(narrow)

    def within(self) -> AbstractContextManager[object]:
        return one_thread()


def even_budget(lengths: Sequence[int], cores: int, limit: int) -> int:
    """Tokens of a batch, at most `limit`, that give every core about the same number."""
    tokens = sum(lengths)
    batches = cores * -(-tokens // (cores * limit))
    # a batch is full when the next sequence would not fit, so it may fall short by one
    return min(limit, -(-tokens // batches) + max(lengths) - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the calling thread alone, without changing other threads' settings."""
    # torch initializes a new thread at its first use, which would undo the limit
    torch.get_num_threads()
    with _openmp().limit(limits=1):
        yield


@cache
def limits_one_thread() -> bool:
    """Whether `one_thread` works with this build of torch."""
    before = torch.get_num_threads()
    with one_thread():
        alone = torch.get_num_threads() == 1
    return alone and torch.get_num_threads() == before


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
