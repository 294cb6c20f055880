"""Files of pairs reranked by a pool of Ray Data actors, each with a scorer of its own.

The input is cut into shards of consecutive rows. Only the shards' places travel through Ray: a
worker reads a shard, scores it and puts its results into the folder in one step. What is in the
folder is done; a run that was killed goes on with the rest. See `sharded/` for the parts that
know no Ray.
"""

from __future__ import annotations

import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_rerank_integrations.errors import InvalidInputError, MissingExtra, RerankError
from bge_rerank_integrations.types import Scorer

try:
    import ray
    import ray.data

    from bge_rerank_integrations.batch.attempts import Attempts
    from bge_rerank_integrations.batch.plan import cut_into_shards
    from bge_rerank_integrations.batch.results import ResultFolder
    from bge_rerank_integrations.batch.scoring import SuspectRow, score_rows
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
    from bge_rerank_integrations.batch.tables import Copied, failed_table, scored_table
    from bge_rerank_integrations.batch.workers import WorkerPlan, plan_workers
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("ray", "pyarrow", "pandas"):
        raise
    raise MissingExtra(str(error.name), "ray") from error

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["BatchReport", "Columns", "WorkerPlan", "plan_workers", "rerank_files"]

MOST_TASKS = 4096


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What is in the folder of results: `rows` of the input, of which `failed` have no score.

    `shards_before` of the `shards` were done by an earlier run; `seconds` is this run's time.
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

    `inputs` are files, or folders of them: a row is a query with a passage, or with a list of
    passages (see `Columns`). `load` gives each worker its scorer, as does
    `functools.partial(load_scorer, "BAAI/bge-reranker-v2-m3", device="cuda")`: it is pickled,
    without any weights. Both paths must be seen by every node, and `output` take hard links and
    atomic renames: a local disk, NFS, Lustre.

    `output/results` has for each row its number, its query id and what `columns.carry` names,
    then score (shown as by `Reranker`, see `normalize`), raw_score (float32) and rank (from 1,
    within the query); for rows with lists, lists in the order of the passages. The rows of a
    query must stand together. `output/errors` has the rows that could not be scored: number,
    query id, the error's class and a message without any of the text.

    Killed at any point, the same call goes on: what is done stays, and each row is there once.
    `shard_rows` rows are the unit of that. A row that a worker dies of costs that row, and three
    workers.

    `workers`, `cpus` and `gpus` (of each worker) size the pool, see `plan_workers`. Ray is used
    as it is initialised; else the cluster that RAY_ADDRESS names; else one is started in this
    machine for the call.

    Raises `InvalidInputError` for an input or option that cannot be, and for a folder that was
    begun with another input, other columns or another scorer; `MissingExtra`; and what no single
    row can be blamed for, such as `ModelNotFound`.
    """
    began = time.monotonic()
    if not callable(load):
        raise InvalidInputError(f"load is a {type(load).__name__}, not a function giving a scorer")
    given = [inputs] if isinstance(inputs, Path | str) else inputs
    files = find_files([Path(place).absolute() for place in given])
    layout = read_layout(files, columns)
    folder = ResultFolder(Path(output).absolute())
    shards = cut_into_shards(files, layout, shard_rows=shard_rows)
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
        work = _Work(
            folder, layout, copied_types(files, layout), load, normalize, run=uuid.uuid4().hex
        )
        if todo:
            with _ray():
                alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
                nodes = [node["Resources"] for node in alive]
                plan = plan_workers(nodes, workers=workers, cpus=cpus, gpus=gpus)
                outcomes = _outcomes(todo, work, plan)
                total = sum(shard.rows for shard in shards)
                _follow(outcomes, total, sum(s.rows for s in todo), show_progress=show_progress)
        return BatchReport(
            rows=sum(shard.rows for shard in shards),
            failed=folder.failed_rows(),
            shards=len(shards),
            shards_before=len(shards) - len(todo),
            seconds=time.monotonic() - began,
            scorer=folder.scorer_name(),
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker is told."""

    folder: ResultFolder
    layout: Layout
    copied: Copied
    load: Callable[[], Scorer]
    normalize: bool
    run: str


class _Worker:
    """An actor: loads its scorer at the first shard, then scores shard after shard."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._reader = RowReader(work.layout)
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
                # as a value: an exception would come out in Ray's words, and a page of them
                failed, stop = 0, pickle.dumps(error)
            yield {"rows": [rows], "failed": [failed], "stop": [stop]}
            if stop:
                return

    def _do(self, shard: Shard) -> int:
        """How many rows failed; 0 also for a shard that was done before this worker's task."""
        work = self._work
        if work.folder.is_done(shard.number):
            return 0
        attempts = Attempts(
            work.folder.attempts_file(shard.number), run=work.run, shard=shard.number
        )
        scorer = self._loaded(attempts)
        scored, failed = score_rows(scorer, self._reader.read(shard), work.layout, attempts)
        work.folder.commit(
            shard.number,
            scored_table(
                scored, work.layout, work.copied, scale=scorer.scale, normalize=work.normalize
            ),
            failed_table(failed, work.layout, work.copied),
        )
        attempts.finished()
        return len(failed)

    def _loaded(self, attempts: Attempts) -> Scorer:
        if self._scorer is None:
            attempts.begin_load()
            scorer = self._work.load()
            if not isinstance(scorer, Scorer):
                raise InvalidInputError(
                    f"load gave a {type(scorer).__name__} without name, scale and score(pairs)"
                )
            # here and not where the run begins, because the precision depends on the device
            self._work.folder.claim_scorer(scorer.name, scorer.scale)
            self._scorer = scorer
        return self._scorer


def _outcomes(todo: Sequence[Shard], work: _Work, plan: WorkerPlan) -> Iterator[dict[str, Any]]:
    """For each shard, when it is done, its rows and how many of them failed."""
    items = [{**asdict(shard), "file": str(shard.file)} for shard in todo]
    # Data that is there from the start, and nothing behind the actors: no other task that would
    # wait for a CPU while they hold them all, which on two CPUs is a deadlock.
    places = ray.data.from_items(items, override_num_blocks=min(len(items), MOST_TASKS))
    dataset = places.map_batches(
        _Worker,
        fn_constructor_args=(work,),
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
            raise pickle.loads(outcome["stop"])  # noqa: S301 - this run's own worker wrote it
        yield outcome


def _follow(
    outcomes: Iterable[dict[str, Any]], total: int, todo: int, *, show_progress: bool
) -> None:
    bar: tqdm[Any] | None = None
    if show_progress:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError as error:
            raise MissingExtra("tqdm", "ray") from error
        bar = tqdm(total=total, initial=total - todo, desc="reranking", unit="row")
    failed = 0
    try:
        for outcome in outcomes:
            failed += outcome["failed"]
            if bar is not None:
                bar.set_postfix(failed=failed, refresh=False)
                bar.update(outcome["rows"])
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def _ray() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        # "local", or Ray would join whatever cluster someone has started on this machine
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
