"""The commands that need judged data: `eval`, `calibrate` and `sweep-layers`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.options import LocalOptions, ScorerOptions

if TYPE_CHECKING:
    from bge_rerank_integrations.evaluate import JudgedQuery, Report, RerankerResult

_BEIR = typer.Option(
    exists=True,
    file_okay=False,
    help="BEIR folder: corpus.jsonl, queries.jsonl, qrels, and a *.trec run.",
)
_Judged = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="JSON lines of judged queries; see above."),
]
_Run = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="TREC run of the BEIR folder's candidates."),
]
_Depth = Annotated[int, typer.Option(min=1, help="Candidates of each query of a BEIR folder.")]
_Queries = Annotated[int | None, typer.Option(min=1, help="Use only the first N queries.")]


@option.with_flags
def evaluate_models(
    *,
    data: Annotated[Path, _BEIR],
    run: _Run = None,
    qrels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Judgements in BEIR's or TREC's format."),
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
        int | None, typer.Option(min=1, help="Candidates to rerank; all by default.")
    ] = None,
    queries: _Queries = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Wins and losses to show, with their texts.")
    ] = 10,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the report to this HTML page.")
    ] = None,
    as_json: option.AsJson = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    options: ScorerOptions,
    show_progress: option.ShowProgress = None,
) -> None:
    """Measure what reranking adds on judged questions.

    Recommends settings where it helps. Questions, passages and judgements are those of a BEIR
    folder; the candidates are those of your retriever's TREC run. Intervals are 95% bootstrap
    intervals over the questions.

    A terminal gets tables. Otherwise, and with --json, one JSON object holds everything, the texts
    of the questions that changed most included.
    """
    from bge_rerank_integrations.evaluate import comparison, page, read_beir

    models = model or [DEFAULT_MODEL]
    if len(set(models)) < len(models):
        raise UnreadableInput(f"--model names {models}; give each model once")
    if html is not None:
        page.check_output(html)
    report = comparison.evaluate(
        read_beir(data, run, qrels=qrels, depth=depth)[:queries],
        {name: partial(load_scorer, name, **options.given()) for name in models},
        measures=measure or comparison.MEASURES,
        resamples=resamples,
        seed=seed,
        examples=examples,
        title=f"Reranking on {data.resolve().name}",
        show_progress=sys.stderr.isatty() if show_progress is None else show_progress,
    )
    if html is not None:
        page.write_html(report, html)
    if as_json or not sys.stdout.isatty():
        typer.echo(json.dumps(asdict(report), ensure_ascii=False, allow_nan=False))
    else:
        _print_report(report, Console())


@option.with_flags
def calibrate(
    *,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the calibration to this file.")],
    data: Annotated[Path | None, _BEIR] = None,
    judged: _Judged = None,
    depth: _Depth = 20,
    diagram: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the reliability diagram to this file.")
    ] = None,
    model: option.Model = DEFAULT_MODEL,
    options: ScorerOptions,
) -> None:
    """Turn raw scores into probabilities of relevance.

    The data is a BEIR folder, or --judged: a file of JSON lines, each
    {"query": "...", "positive": ["..."], "negative": ["..."]}. A candidate of a BEIR folder without
    a judgement counts as not relevant. Rerank with the same model and options.
    """
    from bge_rerank_integrations.evaluate import page
    from bge_rerank_integrations.ranking.calibration import fit_calibration

    page.check_output(out)
    if diagram is not None:
        page.check_output(diagram, image=True)
    queries = _read_judged(data, judged, depth=depth)
    rows = [
        (query.id, (query.text, text), relevant)
        for query in queries
        for text, relevant in zip(query.candidates.values(), query.relevance, strict=True)
    ]
    scorer = load_scorer(model, **options.given())
    raw = scorer.score([pair for _, pair, _ in rows])
    calibration = fit_calibration(
        scorer.name,
        raw.tolist(),
        [relevant for _, _, relevant in rows],
        [query for query, _, _ in rows],
    )
    calibration.save(out)
    if diagram is not None:
        page.draw_calibration(calibration, diagram)
    typer.echo(
        f"{out}: {calibration.method}, {calibration.pairs} pairs of {len(queries)} queries, "
        f"{len(calibration.relevant_scores)} relevant; "
        f"expected calibration error {calibration.error:.3f} on queries not fitted"
    )


@option.with_flags
def sweep_layers(
    *,
    model: Annotated[str, typer.Option(help="Hub id or folder of an LLM reranker.")],
    cutoffs: Annotated[
        str, typer.Option(metavar="N,N,...", help="Layers to compare, separated by commas.")
    ],
    data: Annotated[Path | None, _BEIR] = None,
    run: _Run = None,
    judged: _Judged = None,
    queries: _Queries = None,
    depth: _Depth = 20,
    chart: Annotated[
        Path | None, typer.Option(help="Draw nDCG@10 against seconds to this file.")
    ] = None,
    as_json: option.AsJson = False,
    options: Annotated[LocalOptions, option.Except("cutoff_layers")],
) -> None:
    """Compare an LLM reranker's layers: quality and time.

    Measures nDCG@10 on judged data at each cut-off layer, and the time. The data is a BEIR folder,
    or --judged: a file of JSON lines, each
    {"query": "...", "positive": ["..."], "negative": ["..."]}.

    The model is loaded once per layer, no deeper than that layer, and scores all pairs; a query
    without a relevant passage is left out.
    """
    from bge_rerank_integrations.evaluate import evaluate, page

    try:
        layers = sorted({int(number) for number in cutoffs.split(",")})
    except ValueError:
        raise UnreadableInput(
            f"--cutoffs is {cutoffs!r}; it must be layers separated by commas, as in 8,16,24"
        ) from None
    refuse_address(model)
    if chart is not None:
        page.check_output(chart, image=True)
    given = _read_judged(data, judged, depth=depth, run=run)[:queries]
    chosen = options.given()
    with load_scorer(model, cutoff_layers=layers, **chosen):
        pass  # raises for layers that the model lacks
    report = evaluate(
        given,
        {str(n): partial(load_scorer, model, cutoff_layers=[n], **chosen) for n in layers},
        measures=["nDCG@10"],
        depths=[depth],
        resamples=100,
        examples=0,
    )
    pairs = round(report.candidates.mean * report.questions)
    rows = [
        {
            "cutoff": layer,
            "ndcg": result.measures["nDCG@10"].value,
            "seconds": result.latency.ms_per_candidate * pairs / 1000,
            "pairs": pairs,
        }
        for layer, result in zip(layers, report.rerankers, strict=True)
    ]
    if chart is not None:
        page.draw_layers(rows, chart, title=Path(model).name if Path(model).is_dir() else model)
    if as_json or not sys.stdout.isatty():
        for row in rows:
            typer.echo(json.dumps(row))
        return
    table = Table("layer", "nDCG@10", "seconds", "pairs/s", box=None, pad_edge=False)
    for row in rows:
        speed = row["pairs"] / row["seconds"]
        table.add_row(
            str(row["cutoff"]), f"{row['ndcg']:.4f}", f"{row['seconds']:.3f}", f"{speed:.1f}"
        )
    Console().print(table)


def _read_judged(
    data: Path | None, judged: Path | None, *, depth: int, run: Path | None = None
) -> list[JudgedQuery]:
    """The queries of the BEIR folder or of the judged file, whichever is given."""
    from bge_rerank_integrations.evaluate.judged import read_beir, read_judged_lines

    if data is not None and judged is None:
        return read_beir(data, run, depth=depth)
    if judged is None or data is not None:
        raise UnreadableInput("give judged data either as --data FOLDER or as --judged FILE")
    if run is not None:
        raise UnreadableInput("--run holds candidates of a BEIR folder: give that as --data")
    return read_judged_lines(judged)


def _print_report(report: Report, console: Console) -> None:
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
        cells = [f"{r.measures[name].value:.3f} {r.gains[name]}" for r in report.rerankers]
        table.add_row(name, Text(str(before)), *map(Text, cells), f"{found.best[name]:.3f}")
    console.print(table)
    for result in report.rerankers:
        console.print()
        console.print(Text(result.name))
        console.print(_depths(report, result))
    console.print()
    console.print(Text(report.verdict))


def _depths(report: Report, result: RerankerResult) -> Table:
    columns = ("candidates", report.main, "gain", "recall", "seconds")
    table = Table(*columns, box=None, pad_edge=False)
    for row in result.depths:
        quality = f"{row.quality.value:.3f}"
        cells = (quality, Text(str(row.gain)), f"{row.recall:.3f}", f"{row.seconds:.3f}")
        table.add_row(str(row.depth), *cells)
    return table
