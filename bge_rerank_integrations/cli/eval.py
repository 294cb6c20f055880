"""`bge-rerank eval`: does reranking help on judged questions, and how is it to be set."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.cli.judged_data import BEIR_FOLDER, FirstQueries
from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate import evaluate, read_beir, write_html
from bge_rerank_integrations.evaluate.comparison import MEASURES
from bge_rerank_integrations.evaluate.page import check_page
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.options import ScorerOptions

if TYPE_CHECKING:
    from bge_rerank_integrations.evaluate import Report, RerankerResult


def evaluate_models(
    *,
    data: Annotated[Path, BEIR_FOLDER],
    run: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TREC run of the candidates."),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Judgements, as BEIR or TREC has them."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"Hub id, folder or 'offline'; may be repeated. [{DEFAULT_MODEL}]"),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="nDCG@10, AP, RR@10, R@5, Success@1; may be repeated, the main first."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Rerank so many candidates; all if left out.")
    ] = None,
    queries: FirstQueries = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Wins and losses to show, with their texts.")
    ] = 10,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the report here, as one page.")
    ] = None,
    as_json: option.AsJson = False,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    device: option.Device = None,
    precision: option.Number = "auto",
    max_length: option.MaxLength = None,
    cache_dir: option.Cache = None,
    local_files_only: option.LocalFilesOnly = False,
    show_progress: option.ShowProgress = None,
) -> None:
    """Measure what reranking adds on judged questions, and say how to set it.

    The questions, passages and judgements are a BEIR folder's; the candidates those of a TREC run
    of your retriever. Intervals are of 95%, by a paired bootstrap over the questions.

    On a terminal tables are printed. Otherwise, and with --json, one JSON object with everything,
    the texts of the questions that changed most included.
    """
    models = model or [DEFAULT_MODEL]
    if len(set(models)) < len(models):
        raise UnreadableInput(f"--model names {models}; give each model once")
    if html is not None:
        check_page(html)
    options: ScorerOptions = {
        "device": device,
        "precision": precision,
        "max_length": max_length,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    judged = read_beir(data, run, qrels=qrels, depth=depth)[:queries]
    report = evaluate(
        judged,
        {name: load_scorer(name, **options) for name in models},
        measures=measure or MEASURES,
        resamples=resamples,
        seed=seed,
        examples=examples,
        title=f"Reranking on {data.resolve().name}",
        show_progress=sys.stderr.isatty() if show_progress is None else show_progress,
    )
    if html is not None:
        write_html(report, html)
    if as_json or not sys.stdout.isatty():
        typer.echo(json.dumps(asdict(report), ensure_ascii=False, allow_nan=False))
    else:
        print_report(report, Console())


def print_report(report: "Report", console: Console) -> None:
    """The tables and the verdict."""
    found = report.candidates
    console.print(
        Text(
            f"{report.questions} questions, {found.mean:.0f} candidates each; these hold "
            f"{found.recall:.1%} of the relevant passages, and at least one for "
            f"{found.answerable:.1%} of the questions."
        )
    )
    if report.left_out:
        console.print(f"{report.left_out} questions without a relevant passage are left out.")
    if found.none_found:
        console.print(f"{found.none_found} questions without candidates count as 0.")
    table = Table("", "not reranked", box=None, pad_edge=False)
    for result in report.rerankers:
        table.add_column(Text(result.name))
    table.add_column("best possible")
    for name, before in report.first_stage.items():
        cells = [f"{r.measures[name].value:.3f} {_gain(r, name)}" for r in report.rerankers]
        table.add_row(
            name,
            f"{before.value:.3f} [{before.low:.3f}, {before.high:.3f}]",
            *map(Text, cells),
            f"{found.best[name]:.3f}",
        )
    console.print(table)
    for result in report.rerankers:
        console.print()
        console.print(Text(result.name))
        console.print(_depths(report, result))
    console.print()
    console.print(Text(report.verdict))


def _gain(result: "RerankerResult", name: str) -> str:
    gain = result.gains[name]
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] p {gain.p_value:.3f}"


def _depths(report: "Report", result: "RerankerResult") -> Table:
    columns = ("candidates", report.main, "gain", "recall", "seconds")
    table = Table(*columns, box=None, pad_edge=False)
    for row in result.depths:
        table.add_row(
            str(row.depth),
            f"{row.quality.value:.3f}",
            Text(f"{row.gain.value:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]"),
            f"{row.recall:.3f}",
            f"{row.seconds:.3f}",
        )
    return table
