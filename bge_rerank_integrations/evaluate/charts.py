"""The page's charts, drawn by matplotlib as SVG: no display, and no text from the data in them.

matplotlib reads `$` as mathematics and has no glyph for many scripts, so rerankers are lettered.
"""

import base64
import io
import string
from typing import TYPE_CHECKING

from bge_rerank_integrations.errors import MissingExtra
from bge_rerank_integrations.evaluate.report import Report, RerankerResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#c4572e", "#3f7d3a", "#7a4fa3", "#9a7b0a", "#555555")


def letter(place: int) -> str:
    """A for the first reranker, B for the second; AA follows Z."""
    letters = string.ascii_uppercase
    return letters[place] if place < 26 else letter(place // 26 - 1) + letters[place % 26]


def depth_chart(report: Report) -> str:
    """Quality against the number of candidates that are reranked, as a data URI."""
    figure, axes = _chart()
    first = report.first_stage[report.main]
    for place, result in enumerate(report.rerankers):
        colour = COLOURS[place % len(COLOURS)]
        rows = result.depths
        x = [0, *(row.depth for row in rows)]
        axes.plot(
            x,
            [first.value, *(row.quality.value for row in rows)],
            marker="o",
            markersize=4,
            color=colour,
            label=letter(place),
        )
        axes.fill_between(
            x,
            [first.low, *(row.quality.low for row in rows)],
            [first.high, *(row.quality.high for row in rows)],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    axes.axhline(first.value, color="#888888", linestyle=":", label="not reranked")
    best = report.candidates.best[report.main]
    axes.axhline(best, color="#888888", linestyle="--", label="best possible")
    axes.set_xlabel("candidates reranked")
    axes.set_ylabel(report.main)
    axes.legend(fontsize="small")
    return _uri(figure)


def difference_chart(report: Report) -> str:
    """Each question's change of the main measure, from the worst to the best, as a data URI."""
    figure, axes = _chart()
    for place, result in enumerate(report.rerankers):
        axes.plot(
            range(1, len(result.differences) + 1),
            result.differences,
            drawstyle="steps-mid",
            color=COLOURS[place % len(COLOURS)],
            label=letter(place),
        )
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set_xlabel("questions, in order of their change")
    axes.set_ylabel(f"change of {report.main}")
    axes.legend(fontsize="small")
    return _uri(figure)


def score_chart(result: RerankerResult) -> str:
    """How raw scores of relevant and other candidates spread, as a data URI."""
    figure, axes = _chart()
    drawn = result.histogram
    kinds = (("relevant", drawn.relevant, "#3f7d3a"), ("others", drawn.others, "#999999"))
    for label, counts, colour in kinds:
        whole = max(1, sum(counts))
        shares = [count / whole for count in counts]
        axes.stairs(shares, drawn.edges, fill=True, alpha=0.5, color=colour, label=label)
    if result.threshold is not None:
        raw = result.threshold.raw
        axes.axvline(raw.value, color="#c4572e", label="threshold")
        axes.axvspan(raw.low, raw.high, color="#c4572e", alpha=0.15, linewidth=0)
    axes.set_xlabel(f"raw score ({result.scale})")
    axes.set_ylabel("share of its kind")
    axes.legend(fontsize="small")
    return _uri(figure)


def figure_type() -> "type[Figure]":
    """The figure of matplotlib; raises `MissingExtra` without it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "eval") from error
    return Figure


def _chart() -> "tuple[Figure, Axes]":
    figure = figure_type()(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.25)
    return figure, axes


def _uri(figure: "Figure") -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode("ascii")
