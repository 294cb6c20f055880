"""Rerank files of pairs with a pool of Ray Data actors, each with its own scorer.

The input is cut into shards of consecutive rows. Ray carries only the shards' positions: a worker
reads a shard, scores it and writes its results to the output folder in one step. Shards in the
folder are done; a killed run resumes with the others. No other file of `batch/` uses Ray.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError, RerankError, missing_extra
from bge_rerank_integrations.types import Scorer

with missing_extra("ray"):
    import pyarrow as pa
    import ray
    import ray.data
    from ray.exceptions import ActorDiedError
    from tqdm import tqdm

    from bge_rerank_integrations.batch.results import ResultFolder
    from bge_rerank_integrations.batch.scoring import Attempts, schemas, score_rows
    from bge_rerank_integrations.batch.source import (
        Columns,
        Layout,
        RowReader,
        Shard,
        cut_into_shards,
        find_files,
        fingerprint,
        read_layout,
    )

__all__ = ["BatchReport", "Columns", "rerank_files", "worker_size"]

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
MAX_TASKS = 4096
CPUS_PER_WORKER = 4
"""The default on machines without GPUs: each worker has its own copy of the weights."""

LOST_POOLS = 3
"""How many pools of workers may be lost in a row without finishing a shard."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The state of the output folder: `rows` of the input, of which `failed` have no score.

    `shards_before` of the `shards` were done by earlier runs; `seconds` is the time of this run.
    """

    rows: int
    failed: int
    shards: int
    shards_before: int
    seconds: float
    scorer: str


def rerank_files(
    inputs: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    load: Callable[[], Scorer],
    columns: Columns | None = None,
    shard_rows: int = 1000,
    normalize: bool = True,
    workers: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    show_progress: bool = False,
) -> BatchReport:
    """Score every row of Parquet or JSON-lines files, and write the results as Parquet.

    `inputs` are files, or folders of files; a row has a query and a passage, or a list of passages
    (see `Columns`). `load` returns a worker's scorer, for example
    `functools.partial(load_scorer, "BAAI/bge-reranker-v2-m3", device="cuda")`; it is pickled,
    without any weights. Every node must see both paths, and `output` must support hard links and
    atomic renames: a local disk, NFS, Lustre.

    `output/results` has, for each row, its number, query id, the columns of `columns.carry`, score
    (as `Reranker` shows it, see `normalize`), raw_score (float32) and rank (from 1, within the
    query); for rows with lists, lists in the passages' order. Rows of one query must be contiguous.
    `output/errors` has the rows that could not be scored: number, query id, the error's class and a
    message that quotes no text.

    After a crash, the same call resumes: finished shards of `shard_rows` rows are kept, and each
    row is in the output once. A row that kills its worker costs three workers, and no other row.

    At most `workers` run, by default as many as fit into the cluster; `cpus` and `gpus` are for
    each of them, see `worker_size`. An initialised Ray is used as it is; else the cluster at
    RAY_ADDRESS; else one is started on this machine.

    Raises `InvalidInputError` for an invalid input or option, for a file that cannot be read, and
    for a folder that was created with another input, other columns or another scorer;
    `MissingExtra`; and errors that no row can cause, such as `ModelNotFound`.
    """
    began = time.monotonic()
    if not callable(load):
        raise InvalidInputError(f"load is a {type(load).__name__}; it must return a scorer")
    if workers is not None and workers < 1:
        raise InvalidInputError(f"workers is {workers}; it must be at least 1")
    given = [inputs] if isinstance(inputs, Path | str) else inputs
    files = find_files([Path(place).absolute() for place in given])
    layout, copied = read_layout(files, columns or Columns())
    folder = ResultFolder(Path(output).absolute())
    shards = cut_into_shards(files, layout, shard_rows=shard_rows)
    rows = sum(shard.rows for shard in shards)
    manifest = {
        "input": fingerprint(files),
        "columns": {**asdict(layout), "carry": list(layout.carry)},
        "shard_rows": shard_rows,
        "normalize": normalize,
    }
    with folder.opened(manifest):
        todo = [shard for shard in shards if not folder.is_done(shard.number)]
        job = _Job(folder, layout, schemas(layout, copied), load, normalize)
        if todo:
            bar = tqdm(
                total=rows,
                initial=rows - sum(shard.rows for shard in todo),
                desc="reranking",
                unit="row",
                disable=not show_progress,
            )
            failed = 0
            with _ray() as nodes, bar:
                size = worker_size(nodes, cpus=cpus, gpus=gpus)
                for outcome in _outcomes(todo, job, workers, *size):
                    failed += outcome["failed"]
                    bar.set_postfix(failed=failed, refresh=False)
                    bar.update(outcome["rows"])
        return BatchReport(
            rows=rows,
            failed=folder.failed_rows(),
            shards=len(shards),
            shards_before=len(shards) - len(todo),
            seconds=time.monotonic() - began,
            scorer=folder.scorer_name(),
        )


def worker_size(
    nodes: Sequence[dict[str, float]], *, cpus: float | None = None, gpus: float | None = None
) -> tuple[float, float]:
    """CPUs and GPUs of a worker, in a cluster whose nodes have these resources ("CPU" and "GPU").

    By default a worker has a GPU and a CPU, or without GPUs four CPUs. Raises `InvalidInputError`
    if no worker fits on any node, for which Ray would wait forever.
    """
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) for node in nodes) else 0
    if cpus is None:
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        cpus = 1 if gpus else max(1, min(CPUS_PER_WORKER, most))
    for name, value in (("cpus", cpus), ("gpus", gpus)):
        if not 0 <= value < math.inf:
            raise InvalidInputError(f"{name} is {value!r}; it must be at least 0")
    if not cpus and not gpus:
        raise InvalidInputError("cpus and gpus are both 0; a worker needs one of them")
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        sizes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        raise InvalidInputError(
            f"a worker of {cpus:g} CPUs and {gpus:g} GPUs fits on no node of the cluster "
            f"({', '.join(sizes) or 'which has none'}): request less, or add a node"
        )
    return cpus, gpus


@dataclass(frozen=True, slots=True)
class _Job:
    """The settings of every worker."""

    folder: ResultFolder
    layout: Layout
    schemas: tuple[pa.Schema, pa.Schema]
    load: Callable[[], Scorer]
    normalize: bool


class _Worker:
    """An actor that loads its scorer at the first shard, and scores one shard after another."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._reader = RowReader(job.layout)
        self._scorer: Scorer | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """The number of rows, and of failed rows; or the error that ends the run."""
        shard = Shard(**item)
        try:
            return {"rows": shard.rows, "failed": self._failed_rows(shard), "error": b""}
        except (RerankError, OSError) as error:
            # as a value: Ray would wrap an exception in a page of its own text
            return {"rows": 0, "failed": 0, "error": pickle.dumps(error)}

    def _failed_rows(self, shard: Shard) -> int:
        job = self._job
        if job.folder.is_done(shard.number):  # by a worker whose result did not reach Ray
            return 0
        attempts = Attempts.read(job.folder.attempts_file(shard.number), shard=shard.number)
        if self._scorer is None:
            attempts.begin(0, 0)
            scorer = job.load()
            if not isinstance(scorer, Scorer):
                raise InvalidInputError(
                    f"load gave a {type(scorer).__name__} without name, scale and score(pairs)"
                )
            # not at the start of the run, because the precision depends on the worker's device
            job.folder.claim_scorer(scorer.name, scorer.scale)
            self._scorer = scorer
        scored, failed = score_rows(
            self._scorer, self._reader.read(shard), job.layout, attempts, normalize=job.normalize
        )
        tables = map(pa.Table.from_pylist, (scored, failed), job.schemas)
        job.folder.commit(shard.number, *tables)
        return len(failed)


def _outcomes(
    todo: Sequence[Shard], job: _Job, workers: int | None, cpus: float, gpus: float
) -> Iterator[dict[str, Any]]:
    """Yield the result of `_Worker` for each shard, in the order in which they finish."""
    lost = 0
    while todo:
        # The data is complete from the start, and nothing follows the actors: another task would
        # wait for a CPU while the actors hold all of them, a deadlock on two CPUs.
        places = ray.data.from_items(
            [asdict(shard) for shard in todo], override_num_blocks=min(len(todo), MAX_TASKS)
        )
        dataset = places.map(
            _Worker,  # type: ignore[arg-type] # a class
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.max_errored_blocks = 0
        try:
            for outcome in dataset.iter_rows():
                if outcome["error"]:
                    raise pickle.loads(outcome["error"])  # noqa: S301 - from this run's worker
                lost = 0
                yield outcome
        except ActorDiedError as error:
            # Ray restarts workers that die, with arguments that it keeps in its object store.
            # Where they are lost, a new pool gets them again.
            lost += 1
            if lost > LOST_POOLS:
                last = str(error).strip().splitlines()[-1]
                raise RerankError(
                    f"Ray's workers were lost {lost} times without finishing a shard, last "
                    f"with {last!r}; see Ray's logs, fix the worker, then rerun to resume"
                ) from error
        else:
            return
        todo = [shard for shard in todo if not job.folder.is_done(shard.number)]


@contextmanager
def _ray() -> Iterator[list[dict[str, float]]]:
    """Start or join Ray, quietly; gives the resources of each node."""
    logger = logging.getLogger("ray.data")
    with ExitStack() as afterwards:
        afterwards.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        if not ray.is_initialized():
            if LOG_LEVEL not in os.environ:
                # else Ray warns of lost arguments, which `_outcomes` handles
                os.environ[LOG_LEVEL] = "fatal"
                afterwards.callback(os.environ.pop, LOG_LEVEL)
            cluster = os.environ.get("RAY_ADDRESS")
            ray.init(
                # without "local", Ray would join any cluster that runs on this machine
                address=cluster or "local",
                include_dashboard=None if cluster else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            afterwards.callback(ray.shutdown)
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        yield [node["Resources"] for node in nodes if node["Alive"]]
