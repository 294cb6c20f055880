"""How many workers a cluster of these machines holds, and what each of them gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bge_rerank_integrations.errors import InvalidInputError

CPUS_OF_A_WORKER = 4
"""By default on a machine without GPUs: more workers would each hold the weights again."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many workers there may be, and what of the cluster each one holds."""

    workers: int
    cpus: float
    gpus: float


def plan_workers(
    nodes: Sequence[dict[str, float]],
    *,
    workers: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> WorkerPlan:
    """The pool for a cluster whose nodes have these resources ("CPU" and "GPU").

    By default a worker for each GPU, with one CPU; without GPUs a worker for every four CPUs. A
    pool larger than the cluster runs with what can be placed. Raises `InvalidInputError` if not
    even one worker could ever be: Ray would wait for it without end.
    """
    have_gpus = sum(node.get("GPU", 0) for node in nodes)
    if gpus is None:
        gpus = 1 if have_gpus else 0
    if cpus is None:
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        cpus = 1 if gpus else max(1, min(CPUS_OF_A_WORKER, most))
    for name, value, least in (("cpus", cpus, 0), ("gpus", gpus, 0), ("workers", workers, 1)):
        if value is not None and not (least <= value < math.inf):
            raise InvalidInputError(f"{name} is {value!r}; it must be at least {least}")
    if not cpus and not gpus:
        raise InvalidInputError("a worker of no CPUs and no GPUs cannot be counted: give one")
    need = {"CPU": cpus, "GPU": gpus}
    fitting = [
        min(int(node.get(kind, 0) / much) for kind, much in need.items() if much) for node in nodes
    ]
    if not any(fitting):
        largest = ", ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise InvalidInputError(
            f"a worker of {cpus:g} CPUs and {gpus:g} GPUs fits on no node of the cluster "
            f"({largest or 'which has none'}): ask for less, or add a node"
        )
    return WorkerPlan(sum(fitting) if workers is None else workers, cpus, gpus)
