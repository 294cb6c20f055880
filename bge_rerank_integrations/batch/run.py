"""Rerank files of pairs with a pool of Ray Data actors, each with its own scorer.

The input is cut into shards of consecutive rows. Only the shards' places travel through Ray: a
worker reads a shard, scores it and writes its results to the output folder in one step. Shards in
the folder are done; a killed run resumes with the others. The other files of `batch/` know no Ray.
"""

from __future__ import annotations

import math
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bge_rerank_integrations.errors import InvalidInputError, RerankError, missing_extra
from bge_rerank_integrations.types import Scorer

with missing_extra("ray"):
    import ray
    import ray.data
    from tqdm import tqdm

    from bge_rerank_integrations.batch.attempts import Attempts
    from bge_rerank_integrations.batch.plan import cut_into_shards
    from bge_rerank_integrations.batch.results import ResultFolder
    from bge_rerank_integrations.batch.scoring import (
        Copied,
        SuspectRow,
        failed_table,
        score_rows,
        scored_table,
    )
    from bge_rerank_integrations.batch.source import (
        DEFAULT_COLUMNS,
        Columns,
        Layout,
        RowReader,
        Shard,
        copied_types,
        find_files,
        fingerprint,
        read_layout,
    )

__all__ = ["BatchReport", "Columns", "WorkerPlan", "plan_workers", "rerank_files"]

MAX_TASKS = 4096
CPUS_PER_WORKER = 4
"""The default on machines without GPUs: each worker has its own copy of the weights."""


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
    columns: Columns = DEFAULT_COLUMNS,
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

    `workers`, `cpus` and `gpus` (per worker) size the pool, see `plan_workers`. An initialised Ray
    is used as it is; else the cluster at RAY_ADDRESS; else one is started on this machine.

    Raises `InvalidInputError` for an invalid input or option, for a file that cannot be read, and
    for a folder that was created with another input, other columns or another scorer;
    `MissingExtra`; and errors that no row can be the cause of, such as `ModelNotFound`.
    """
    began = time.monotonic()
    if not callable(load):
        raise InvalidInputError(f"load is a {type(load).__name__}; it must return a scorer")
    given = [inputs] if isinstance(inputs, Path | str) else inputs
    files = find_files([Path(place).absolute() for place in given])
    layout = read_layout(files, columns)
    folder = ResultFolder(Path(output).absolute())
    shards = cut_into_shards(files, layout, shard_rows=shard_rows)
    rows = sum(shard.rows for shard in shards)
    folder.open(
        {
            "input": fingerprint(files),
            "columns": {**asdict(layout), "carry": list(layout.carry)},
            "shard_rows": shard_rows,
            "normalize": normalize,
        }
    )
    with folder.alone():
        folder.tidy()
        done = folder.done()
        todo = [shard for shard in shards if shard.number not in done]
        copied = copied_types(files, layout)
        job = _Job(folder, layout, copied, load, normalize, run=uuid.uuid4().hex)
        if todo:
            with (
                _ray(),
                tqdm(
                    total=rows,
                    initial=rows - sum(shard.rows for shard in todo),
                    desc="reranking",
                    unit="row",
                    disable=not show_progress,
                ) as bar,
            ):
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
                failed = 0
                plan = plan_workers(nodes, workers=workers, cpus=cpus, gpus=gpus)
                for outcome in _outcomes(todo, job, plan):
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


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The number of workers, and the CPUs and GPUs of each."""

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
    """The worker pool for a cluster whose nodes have these resources ("CPU" and "GPU").

    By default one worker with one CPU per GPU, or without GPUs one worker per four CPUs. If
    `workers` do not fit, as many run as fit. Raises `InvalidInputError` if no worker fits on any
    node, for which Ray would wait forever.
    """
    if gpus is None:
        gpus = 1 if any(node.get("GPU", 0) for node in nodes) else 0
    if cpus is None:
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        cpus = 1 if gpus else max(1, min(CPUS_PER_WORKER, most))
    for name, value, least in (("cpus", cpus, 0), ("gpus", gpus, 0), ("workers", workers, 1)):
        if value is not None and not (least <= value < math.inf):
            raise InvalidInputError(f"{name} is {value!r}; it must be at least {least}")
    if not cpus and not gpus:
        raise InvalidInputError("cpus and gpus are both 0; a worker needs one of them")
    need = {"CPU": cpus, "GPU": gpus}
    fitting = [
        min(int(node.get(kind, 0) / much) for kind, much in need.items() if much) for node in nodes
    ]
    if not any(fitting):
        sizes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        raise InvalidInputError(
            f"a worker of {cpus:g} CPUs and {gpus:g} GPUs fits on no node of the cluster "
            f"({', '.join(sizes) or 'which has none'}): request less, or add a node"
        )
    return WorkerPlan(sum(fitting) if workers is None else workers, cpus, gpus)


@dataclass(frozen=True, slots=True)
class _Job:
    """The settings of every worker."""

    folder: ResultFolder
    layout: Layout
    copied: Copied
    load: Callable[[], Scorer]
    normalize: bool
    run: str


class _Worker:
    """An actor that loads its scorer at the first shard, and scores one shard after another."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._reader = RowReader(job.layout)
        self._scorer: Scorer | None = None

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for number, file, start, first_row, rows in zip(
            *(batch[name].tolist() for name in ("number", "file", "start", "first_row", "rows")),
            strict=True,
        ):
            shard = Shard(number, Path(file), start, first_row, rows)
            try:
                failed, stop = self._do(shard), b""
            except (RerankError, OSError) as error:
                # as a value: Ray would wrap an exception in a page of its own text
                failed, stop = 0, pickle.dumps(error)
            yield {"rows": [rows], "failed": [failed], "stop": [stop]}
            if stop:
                return

    def _do(self, shard: Shard) -> int:
        """The number of failed rows; 0 for a shard that was already done."""
        job = self._job
        if job.folder.is_done(shard.number):
            return 0
        attempts = Attempts(job.folder.attempts_file(shard.number), run=job.run, shard=shard.number)
        scorer = self._loaded(attempts)
        scored, failed = score_rows(scorer, self._reader.read(shard), job.layout, attempts)
        job.folder.commit(
            shard.number,
            scored_table(
                scored, job.layout, job.copied, scale=scorer.scale, normalize=job.normalize
            ),
            failed_table(failed, job.layout, job.copied),
        )
        attempts.finished()
        return len(failed)

    def _loaded(self, attempts: Attempts) -> Scorer:
        if self._scorer is None:
            attempts.begin_load()
            scorer = self._job.load()
            if not isinstance(scorer, Scorer):
                raise InvalidInputError(
                    f"load gave a {type(scorer).__name__} without name, scale and score(pairs)"
                )
            # not where the run begins, because the precision depends on the worker's device
            self._job.folder.claim_scorer(scorer.name, scorer.scale)
            self._scorer = scorer
        return self._scorer


def _outcomes(todo: Sequence[Shard], job: _Job, plan: WorkerPlan) -> Iterator[dict[str, Any]]:
    """The number of rows, and of failed rows, of each shard when it is done."""
    items = [{**asdict(shard), "file": str(shard.file)} for shard in todo]
    # The data is complete from the start, and nothing follows the actors: another task would wait
    # for a CPU while the actors hold all of them, a deadlock on two CPUs.
    places = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_TASKS))
    dataset = places.map_batches(
        _Worker,
        fn_constructor_args=(job,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=plan.workers),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_task_retry_on_errors = [SuspectRow]  # type: ignore[list-item] # classes
    context.max_errored_blocks = 0
    for outcome in dataset.iter_rows():
        if outcome["stop"]:
            raise pickle.loads(outcome["stop"])  # noqa: S301 - written by this run's worker
        yield outcome


@contextmanager
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        # without "local", Ray would join any cluster that runs on this machine
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
