"""Time the backends and number formats of one model on this machine."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from bge_rerank_integrations.errors import RerankError, missing_extra
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.tools.doctor import BROKEN, GRID, QUERIES, TIMED, describe_error
from bge_rerank_integrations.tools.export import export_onnx, kendall_tau
from bge_rerank_integrations.types import Backend, FloatArray, GraphFormat

if TYPE_CHECKING:
    from bge_rerank_integrations.local.scorer import LocalScorer

GRAPH_BACKENDS: tuple[Backend, ...] = ("onnx", "openvino")
ROUNDS = 3
# Float32 scores of two backends differ by less; half formats and int8 by 0.001 and more.
EXACT = 1e-4
# A row that saves less is not worth its error.
WORTH_IT = 0.9


@dataclass(frozen=True, slots=True)
class Lap:
    """One backend in one number format.

    `seconds` is the shortest of three times for one query and 50 passages of about 70 tokens.
    `error` is the largest difference of a raw score from float32's, and `tau` is `kendall_tau` of
    the orders; both are None if float32 did not run. `detail` says why nothing ran.
    """

    backend: str
    precision: str
    seconds: float | None = None
    error: float | None = None
    tau: float | None = None
    detail: str = ""

    @property
    def label(self) -> str:
        return f"{self.backend} {self.precision}"

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.label:<16}did not run: {self.detail}"
        row = f"{self.label:<16}{self.seconds:.3f} s"
        if self.error is None:
            return row
        return f"{row}, off by at most {self.error:.1e}, Kendall tau {self.tau:.2f}"


def race(model: str, *, device: str | None = None) -> list[Lap]:
    """Time every backend and number format that this machine has for `model`.

    A model with weights runs on torch in float32 and in the half formats of `device`, and as graphs
    that are exported to a temporary folder in float32 and int8; a folder without weights runs its
    own graph. A combination that is missing or fails is a lap with the reason.
    """
    laps: list[Lap] = []
    exact: FloatArray | None = None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for backend, number_format, load in _entries(model, device, Path(folder)):
            try:
                with load() as scorer:
                    scores = scorer.score(GRID)
                    precision = scorer.plan.precision.removesuffix("-openvino")
                    seconds = min(_seconds(scorer) for _ in range(1 + ROUNDS))
            except (RerankError, *BROKEN) as failure:
                laps.append(Lap(backend, number_format, detail=describe_error(failure)))
                continue
            if exact is None and precision == "fp32":
                exact = scores
            error = tau = None
            if exact is not None:
                error = float(np.abs(scores - exact).max())
                tau = kendall_tau(*(a.reshape(len(QUERIES), -1) for a in (exact, scores)))
            laps.append(Lap(backend, precision, seconds, error, tau))
    return laps


def recommend(laps: Sequence[Lap]) -> str:
    """The fastest lap with float32's scores, and a faster one with its error if there is one."""
    ran = [lap for lap in laps if lap.seconds is not None]
    if not ran:
        return "nothing ran"
    fastest = min(ran, key=attrgetter("seconds"))
    exact = [lap for lap in ran if lap.error is not None and lap.error <= EXACT]
    if not exact:
        return f"{fastest.label} was the fastest; float32 did not run, so its error is unknown"
    best = min(exact, key=attrgetter("seconds"))
    found = f"{best.label} was the fastest with float32's scores"
    share = (fastest.seconds or 0) / (best.seconds or 1)
    if share > WORTH_IT:
        return f"{found}, and nothing was much faster"
    return (
        f"{found}; {fastest.label} took {share:.2f} of its time, with scores off by up to "
        f"{fastest.error:.1e} (Kendall tau {fastest.tau:.2f}): try it on your own data with "
        "bge-rerank eval"
    )


def _entries(
    model: str, device: str | None, folder: Path
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Backend, number format, and the function that loads the scorer."""
    halves = _half_formats(model, device)
    torch = partial(load_scorer, model, backend="torch", device=device)
    for precision in ("fp32", *(halves or ())):
        yield "torch", precision, partial(torch, precision=precision)
    if halves is None:
        for backend in GRAPH_BACKENDS:
            yield backend, "graph", partial(load_scorer, model, backend=backend)
        return

    @cache
    def exported(number_format: GraphFormat) -> str:
        return str(export_onnx(model, folder / number_format, dtype=number_format).folder)

    def graph(backend: Backend, number_format: GraphFormat) -> Any:
        return load_scorer(exported(number_format), backend=backend)

    for number_format in get_args(GraphFormat):
        for backend in GRAPH_BACKENDS:
            yield backend, number_format, partial(graph, backend, number_format)


def _half_formats(model: str, device: str | None) -> tuple[str, ...] | None:
    """The half formats of the device that torch runs the model on; None where it cannot."""
    from bge_rerank_integrations.local.checkpoint import open_checkpoint
    from bge_rerank_integrations.local.device import half_formats, plan_device, read_hardware

    try:
        with missing_extra("local"):
            hardware = read_hardware()
        plan = plan_device(hardware, device=device, precision="fp32")
        return half_formats(hardware, plan.device) if open_checkpoint(model).tensors else None
    except (RerankError, *BROKEN):
        return None  # load_scorer gives the reason


def _seconds(scorer: "LocalScorer") -> float:
    started = time.perf_counter()
    scorer.score(TIMED)
    return time.perf_counter() - started
