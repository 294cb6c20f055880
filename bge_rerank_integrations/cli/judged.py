"""The commands that need judged data: `eval` and `calibrate`."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bge_rerank_integrations.base.address import is_address, may_be_tag
from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.base.option_group import Count, Options, Place
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.cli.table import print_table, printable
from bge_rerank_integrations.errors import InvalidInputError, UnreadableInput
from bge_rerank_integrations.load import load_scorer, open_store
from bge_rerank_integrations.options import ScorerOptions

if TYPE_CHECKING:
    from bge_rerank_integrations.evaluate import JudgedQuery, Report

logger = logging.getLogger(__name__)

_SCORES = "rerank-scores.sqlite"


class JudgedData(Options):
    """The options that say where to read judged queries."""

    data: Place | None = None
    """BEIR folder: corpus.jsonl, queries.jsonl, qrels, and a *.trec run."""
    run: Place | None = None
    """TREC run of the BEIR folder's candidates."""
    qrels: Place | None = None
    """Judgements of the BEIR folder's queries, in BEIR's or TREC's format."""
    judged: Place | None = None
    """JSON lines of judged queries; see above."""
    depth: Count = None
    """Maximum candidates per query of a BEIR folder; by default all for eval, else 20."""
    queries: Count = None
    """Use only the first N queries."""

    def read(self, depth: int | None = None) -> list[JudgedQuery]:
        """The queries of the folder or the file, whichever is given."""
        from bge_rerank_integrations.evaluate.judged import read_beir, read_judged_lines

        if (self.data is None) == (self.judged is None):
            raise UnreadableInput("give judged data either as --data FOLDER or as --judged FILE")
        if self.judged is not None:
            if self.run is not None:
                raise UnreadableInput("--run holds candidates of a BEIR folder: give it as --data")
            return read_judged_lines(Path(self.judged))[: self.queries]
        run, qrels = (None if place is None else Path(place) for place in (self.run, self.qrels))
        found = read_beir(Path(str(self.data)), run, qrels=qrels, depth=self.depth or depth)
        return found[: self.queries]


@option.with_flags
def evaluate_models(
    *,
    given: Annotated[JudgedData, option.Except("judged")],
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"Hub id, folder or 'offline'; may be repeated. [{DEFAULT_MODEL}]"),
    ] = None,
    max_length: Annotated[
        list[int] | None, typer.Option(help="Maximum tokens of a pair; may be repeated.")
    ] = None,
    cutoff_layers: Annotated[
        list[int] | None,
        typer.Option(help="Layer at which an LLM reranker scores; may be repeated."),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(help="nDCG@10, AP, RR@10, R@5, Success@1; may be repeated, the main first."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Wins and losses to show, with their texts.")
    ] = 10,
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the report to this HTML page.")
    ] = None,
    recommendation: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write the recommended options to this JSON file."),
    ] = None,
    score_cache: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"Caches scores; by default {_SCORES} next to the data."),
    ] = None,
    as_json: option.AsJson = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    options: Annotated[ScorerOptions, option.Except("max_length", "cutoff_layers")],
    show_progress: option.ShowProgress = None,
) -> None:
    """Measure what reranking adds on judged questions.

    If reranking helps, settings are recommended. Questions, passages and judgements come from a
    BEIR folder, candidates from your retriever's TREC run. Intervals are 95% bootstrap intervals
    over the questions. Each --model is compared at each --max-length and each of --cutoff-layers,
    and computes no deeper layer.

    Scores are cached as they come, without texts: a run that was stopped resumes, and a later run
    with more models scores no pair again. ":memory:" writes no file. Scores from the file are not
    timed.

    A terminal gets tables, and code to paste. Otherwise, and with --json, the output is one JSON
    object with everything, including the texts of the questions that changed most. --recommendation
    writes options for BGERerank(**options).
    """
    from bge_rerank_integrations.evaluate import comparison, page

    if given.data is None:
        raise UnreadableInput("give judged data as --data FOLDER")
    models = model or [DEFAULT_MODEL]
    if len(set(models)) < len(models):
        raise UnreadableInput(f"--model names {models}; give each model once")
    for file in (html, recommendation):
        if file is not None:
            page.check_output(file)
    queries, data = given.read(), Path(given.data)
    for name in models if cutoff_layers else ():
        with load_scorer(name, cutoff_layers=cutoff_layers, **options.given()):
            pass  # raises for a layer that the model lacks, before anything is scored
    layers = [[layer] for layer in cutoff_layers or ()]
    rerankers = _each_of(models, options, {"max_length": max_length, "cutoff_layers": layers})
    # an address alone does not say which model it serves, now or in a later run
    unnamed = any(is_address(name) and not may_be_tag(name) for name in models)
    place = score_cache or (":memory:" if unnamed else str(data / _SCORES))
    report = comparison.evaluate(
        queries,
        {label: partial(load_scorer, **chosen) for label, chosen in rerankers.items()},
        measures=measure or comparison.MEASURES,
        resamples=resamples,
        seed=seed,
        examples=examples,
        title=f"Reranking on {data.resolve().name}",
        show_progress=sys.stderr.isatty() if show_progress is None else show_progress,
        score_cache=[open_store(place, name) for name in models][-1],
    )
    code = _ready_to_paste(report, rerankers, recommendation)
    if html is not None:
        page.write_html(report, html, code=code)
    if as_json or not sys.stdout.isatty():
        typer.echo(json.dumps(asdict(report), ensure_ascii=False, allow_nan=False))
    else:
        _print_report(report)
        print(f"\n{code}".rstrip())


def _ready_to_paste(
    report: Report, rerankers: Mapping[str, dict[str, Any]], file: Path | None
) -> str:
    """Code for the best reranker with its recommended options; the file gets the options too."""
    from bge_rerank_integrations.evaluate.report import code_to_paste

    chosen = {result.name: result.recommendation for result in report.rerankers}
    if report.best is None or (found := chosen[report.best]) is None:
        if file is not None:
            logger.warning("no reranker measurably helps, so %s is not written", file)
        return ""
    best = {**rerankers[report.best], **found.options}
    if file is not None:
        file.write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    return code_to_paste(best, None if found.depth is None else int(found.depth.value))


def _each_of(
    models: Sequence[str], options: ScorerOptions, varied: Mapping[str, Sequence[object] | None]
) -> dict[str, dict[str, Any]]:
    """Arguments for `load_scorer`, by the name of each model with each combination of values."""
    given = {name: values for name, values in varied.items() if values}
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        for values in itertools.product(*given.values()):
            chosen = dict(zip(given, values, strict=True))
            shown = [f"{name}={value}" for name, value in chosen.items() if len(given[name]) > 1]
            found[" ".join([model, *shown])] = {"model": model, **options.given(), **chosen}
    return found


@option.with_flags
def calibrate(
    *,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the calibration to this file.")],
    given: JudgedData,
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
    queries = given.read(depth=20)
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
    print(f"{out}: {calibration.pairs} pairs of {len(queries)} queries")
    print_table(
        [
            ("on held-out queries", "calibration error", "at best"),
            ("all passages", f"{calibration.error:.3f}", f"{calibration.floor:.3f}"),
            ("first three", f"{calibration.top_error:.3f}", f"{calibration.top_floor:.3f}"),
        ]
    )
    print(f"first three: mean probability minus relevant share {calibration.top_bias:+.3f}")
    for recall in (0.9, 0.95, 0.99):
        try:
            threshold = calibration.threshold(recall)
        except InvalidInputError as error:
            print(error)
        else:
            print(f"target_recall={recall} keeps {calibration.kept(threshold):.0%} of the passages")


def _print_report(report: Report) -> None:
    found = report.candidates
    print(
        f"{report.questions} questions, {found.mean:.0f} candidates each; these hold "
        f"{found.recall:.1%} of the relevant passages, and at least one for "
        f"{found.answerable:.1%} of the questions."
    )
    if report.left_out:
        print(f"{report.left_out} questions without a relevant passage are left out.")
    if found.none_found:
        print(f"{found.none_found} questions without candidates count as 0.")
    rows: list[tuple[object, ...]] = []
    for name, before in report.first_stage.items():
        rows.append((name, before, "not reranked"))
        for result in report.rerankers:
            value = f"{result.measures[name].value:.3f} {result.gains[name]}"
            rows.append(("", value, result.name))
        rows.append(("", f"{found.best[name]:.3f}", "best possible"))
    print_table(rows)
    for result in report.rerankers:
        print(f"\n{printable(result.name)}")
        rows = [("candidates", report.main, "gain", "recall", "seconds")]
        for row in result.depths:
            time = result.latency and f"{row.depth * result.latency.ms_per_candidate / 1000:.3f}"
            quality, recall = f"{row.quality.value:.3f}", f"{row.recall:.3f}"
            rows.append((row.depth, quality, row.gain, recall, time or "not timed"))
        print_table(rows)
    print(f"\n{printable(report.verdict)}")
