"""`bge-rerank calibrate`: what a model's scores mean on judged data, as a file to rerank with."""

from pathlib import Path
from typing import Annotated

import typer

from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.cli.judged_data import BEIR_FOLDER, Depth, JudgedLines, read_judged
from bge_rerank_integrations.errors import MissingExtra
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.ranking.calibration import Calibration, fit_calibration


def calibrate(
    *,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Write the calibration here.")],
    data: Annotated[Path | None, BEIR_FOLDER] = None,
    judged: JudgedLines = None,
    depth: Depth = 20,
    diagram: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw the reliability diagram here.")
    ] = None,
    model: option.Model = DEFAULT_MODEL,
    device: option.Device = None,
    precision: option.Number = "auto",
    max_length: option.MaxLength = None,
    cache_dir: option.Cache = None,
    local_files_only: option.LocalFilesOnly = False,
) -> None:
    """Fit raw scores to the probability that a passage is relevant.

    The data is a BEIR folder, or --judged: a file of JSON lines, each
    {"query": "...", "positive": ["..."], "negative": ["..."]}. A candidate of a BEIR folder that
    nobody judged counts as not relevant. The same model and options must be used to rerank.
    """
    queries = read_judged(data, judged, depth=depth)
    rows = [
        (query.id, (query.text, text), query.grades.get(passage, 0) > 0)
        for query in queries
        for passage, text in query.candidates.items()
    ]
    scorer = load_scorer(
        model,
        device=device,
        precision=precision,
        max_length=max_length,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    raw = scorer.score([pair for _, pair, _ in rows])
    calibration = fit_calibration(
        scorer.name,
        raw.tolist(),
        [relevant for _, _, relevant in rows],
        [query for query, _, _ in rows],
    )
    calibration.save(out)
    if diagram is not None:
        _draw(calibration, diagram)
    typer.echo(
        f"{out}: {calibration.method}, {calibration.pairs} pairs of {len(queries)} queries, "
        f"{len(calibration.relevant_scores)} relevant; "
        f"expected calibration error {calibration.error:.3f} on queries not fitted"
    )


def _draw(calibration: Calibration, file: Path) -> None:
    """The share that is relevant against the probability, a point for each bin."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "eval") from error
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="a perfect calibration")
    axes.plot(
        [some.probability for some in calibration.bins],
        [some.relevant for some in calibration.bins],
        marker="o",
        label=f"{calibration.method}, error {calibration.error:.3f}",
    )
    axes.set_xlabel("probability")
    axes.set_ylabel("share that is relevant")
    axes.legend()
    figure.savefig(file, dpi=150)
