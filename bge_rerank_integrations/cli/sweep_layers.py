"""`bge-rerank sweep-layers`: which cut-off layer is worth its time."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.cli.judged_data import (
    BEIR_FOLDER,
    Depth,
    FirstQueries,
    JudgedLines,
    read_judged,
)
from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate.layers import Sweep, check_chart, draw_chart, measure_layers
from bge_rerank_integrations.options import LocalOptions


def sweep_layers(
    *,
    model: Annotated[str, typer.Option(help="Hub id or folder of an LLM reranker.")],
    cutoffs: Annotated[
        str, typer.Option(metavar="N,N,...", help="Layers to compare, with commas between them.")
    ],
    data: Annotated[Path | None, BEIR_FOLDER] = None,
    run: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TREC run of the BEIR folder's candidates."),
    ] = None,
    judged: JudgedLines = None,
    queries: FirstQueries = None,
    depth: Depth = 20,
    timed_pairs: Annotated[
        int, typer.Option(min=1, help="Pairs to time, at each layer in each round.")
    ] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to time; the median counts.")] = 3,
    chart: Annotated[
        Path | None, typer.Option(help="Draw nDCG@10 against seconds into this image.")
    ] = None,
    as_json: option.AsJson = False,
    device: option.Device = None,
    precision: option.Number = "auto",
    max_length: option.MaxLength = None,
    prompt: option.Prompt = None,
    compress_ratio: option.CompressRatio = 1,
    compress_layers: option.CompressLayers = None,
    head_indexing: option.Heads = "request",
    revision: option.Revision = None,
    cache_dir: option.Cache = None,
    local_files_only: option.LocalFilesOnly = False,
) -> None:
    """Compare an LLM reranker's cut-off layers: nDCG@10 on judged data, and time.

    The data is a BEIR folder, or --judged: a file of JSON lines, each
    {"query": "...", "positive": ["..."], "negative": ["..."]}.

    All pairs are scored for nDCG@10. For the time, the model is loaded anew for each layer in each
    round, no deeper than that layer, and scores the first --timed-pairs pairs.
    """
    try:
        layers = tuple(int(number) for number in cutoffs.split(","))
    except ValueError:
        raise UnreadableInput(
            f"--cutoffs is {cutoffs!r}; it must be layers with commas between them, as in 8,16,24"
        ) from None
    if chart is not None:
        check_chart(chart)
    options: LocalOptions = {
        "device": device,
        "precision": precision,
        "max_length": max_length,
        "prompt": prompt,
        "compress_ratio": compress_ratio,
        "compress_layers": compress_layers or (),
        "head_indexing": head_indexing,
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    sweep = Sweep(model, layers, options, timed_pairs=timed_pairs, rounds=rounds)
    given = read_judged(data, judged, depth=depth, run=run)
    rows = measure_layers(sweep, given[:queries])
    if chart is not None:
        draw_chart(rows, chart, title=Path(model).name if Path(model).is_dir() else model)
    if as_json or not sys.stdout.isatty():
        for row in rows:
            typer.echo(json.dumps(asdict(row)))
        return
    table = Table("layer", "nDCG@10", "seconds", "pairs/s", box=None, pad_edge=False)
    for row in rows:
        speed = row.pairs / row.seconds
        table.add_row(str(row.cutoff), f"{row.ndcg:.4f}", f"{row.seconds:.3f}", f"{speed:.1f}")
    Console().print(table)
