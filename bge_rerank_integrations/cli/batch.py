"""`bge-rerank batch`: files of pairs, on every machine of a Ray cluster or on this one."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.options import ScorerOptions

ROWS_FAILED = 3
"""The exit code if the run is complete but some rows have no score."""


@option.with_flags
def batch(
    inputs: Annotated[list[Path], typer.Argument(help="Parquet or .jsonl files, or folders.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder for the results; give it again to resume.")],
    query_column: Annotated[str, typer.Option(help="Column of the query.")] = "query",
    passage_column: Annotated[
        str | None, typer.Option(help="Column; by default 'passages' or 'passage'.")
    ] = None,
    query_id_column: Annotated[
        str | None, typer.Option(help="Column; by default 'query_id', if there is one.")
    ] = None,
    carry: Annotated[
        list[str] | None, typer.Option(help="Column to copy into the results; may be repeated.")
    ] = None,
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 1000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Maximum workers; by default as many as fit.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs per worker.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs per worker.")] = None,
    normalize: Annotated[
        bool, typer.Option(help="Show a logit as its sigmoid, between 0 and 1.")
    ] = True,
    as_json: option.AsJson = False,
    model: option.Model = DEFAULT_MODEL,
    options: ScorerOptions,
    show_progress: option.ShowProgress = None,
) -> None:
    """Score files of pairs on a pool of workers.

    The files are Parquet or JSON lines, the results Parquet. A row is a query with a "passage", or
    with "passages", a list. In OUTPUT, results has each row's number, query id, score, raw_score
    and rank; errors has the rows that could not be scored, with a reason. Run the same command
    again to resume an interrupted run.

    The workers are Ray's: on the cluster that RAY_ADDRESS names, else on this machine. Exits with
    3 if the run is complete but some rows have no score.
    """
    from bge_rerank_integrations.batch.run import Columns, rerank_files

    # a worker may have another working directory
    place = str(Path(model).absolute()) if Path(model).is_dir() else model
    with redirect_stdout(sys.stderr):  # where Ray reports its workers
        report = rerank_files(
            inputs,
            output,
            load=partial(load_scorer, place, **options.given()),
            columns=Columns(query_column, passage_column, query_id_column, tuple(carry or ())),
            shard_rows=shard_rows,
            normalize=normalize,
            workers=workers,
            cpus=cpus,
            gpus=gpus,
            show_progress=sys.stderr.isatty() if show_progress is None else show_progress,
        )
    if as_json or not sys.stdout.isatty():
        print(json.dumps(asdict(report), ensure_ascii=False))
    else:
        print(f"{report.rows - report.failed} of {report.rows} rows scored by {report.scorer}")
        print(f"{report.shards_before} of {report.shards} shards were done before")
        print(f"results are in {output / 'results'}, in {report.seconds:.0f} s")
    if report.failed:
        message = f"{report.failed} rows have no score; {output / 'errors'} says why"
        print("bge-rerank:", message, file=sys.stderr)
        raise typer.Exit(ROWS_FAILED)
