"""The report as one HTML page, and the charts of every command, drawn by matplotlib.

The page loads nothing from elsewhere: no script, font or image. jinja2 escapes every text, and the
page's policy also forbids scripts.
"""

import base64
import io
from pathlib import Path

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.report import Report, RerankerResult
from bge_rerank_integrations.ranking.calibration import Calibration

LONGEST = 600
"""The maximum characters of a text that the page shows."""


def check_output(file: Path, *, image: bool = False) -> None:
    """Raise `InvalidInputError`, before hours of work, for a file that could not be written."""
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file} cannot be written: there is no folder {file.parent}")
    kinds = Figure().canvas.get_supported_filetypes() if image else {}
    if image and file.suffix.removeprefix(".").lower() not in kinds:
        raise InvalidInputError(f"{file} cannot be drawn; it must end in .{', .'.join(kinds)}")


def write_html(report: Report, file: str | Path, *, code: str = "") -> None:
    """Write the report as a UTF-8 page, with the texts of the questions that changed most.

    `code` is shown below the verdict, such as `report.code_to_paste`. Raises `OSError` for a file
    that cannot be written.
    """
    page = html_page(report, code=code)
    Path(file).write_text(page, encoding="utf-8", errors="backslashreplace")


def html_page(report: Report, *, code: str = "") -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda text: (
        text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        code=code,
        depth_chart=_depth_chart(report),
        difference_chart=_difference_chart(report),
        score_charts=[_score_chart(result) for result in report.rerankers],
    )


def draw_calibration(calibration: Calibration, file: Path) -> None:
    """Draw the reliability diagram: the relevant share against the probability, by bin."""
    figure, axes = _chart(5, 5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="a perfect calibration")
    axes.plot(
        [some.probability for some in calibration.bins],
        [some.relevant for some in calibration.bins],
        marker="o",
        label=f"error {calibration.error:.3f}, at best {calibration.floor:.3f}",
    )
    axes.set(xlabel="probability", ylabel="relevant share")
    axes.legend()
    figure.savefig(file, dpi=150)


def _depth_chart(report: Report) -> str:
    figure, axes = _chart()
    first = report.first_stage[report.main]
    for place, result in enumerate(report.rerankers):
        rows = [first, *(row.quality for row in result.depths)]
        x = [0, *(row.depth for row in result.depths)]
        values, label = [row.value for row in rows], _label(result, place)
        (line,) = axes.plot(x, values, marker="o", markersize=4, label=label)
        lows, highs = [row.low for row in rows], [row.high for row in rows]
        axes.fill_between(x, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    best = report.candidates.best[report.main]
    axes.axhline(first.value, color="#888888", linestyle=":", label="not reranked")
    axes.axhline(best, color="#888888", linestyle="--", label="best possible")
    axes.set(xlabel="candidates reranked", ylabel=report.main)
    return _uri(figure, axes)


def _difference_chart(report: Report) -> str:
    figure, axes = _chart()
    for place, result in enumerate(report.rerankers):
        x = range(1, len(result.differences) + 1)
        label = _label(result, place)
        axes.plot(x, result.differences, drawstyle="steps-mid", label=label)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="questions, by their change", ylabel=f"change of {report.main}")
    return _uri(figure, axes)


def _score_chart(result: RerankerResult) -> str:
    figure, axes = _chart()
    drawn = result.histogram
    kinds = (("relevant", drawn.relevant, "#3f7d3a"), ("others", drawn.others, "#999999"))
    for label, counts, colour in kinds:
        whole = max(1, sum(counts))
        shares = [count / whole for count in counts]
        axes.stairs(shares, drawn.edges, fill=True, alpha=0.5, color=colour, label=label)
    axes.set(xlabel=f"raw score ({result.scale})", ylabel="share of its kind")
    return _uri(figure, axes)


def _label(result: RerankerResult, place: int) -> str:
    """The reranker's name, or its number where matplotlib's font may lack a glyph of the name."""
    plain = result.name.isascii() and result.name.isprintable()
    return result.name if plain and not result.name.startswith("_") else f"reranker {place + 1}"


def _chart(width: float = 7, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, alpha=0.25)
    return figure, axes


def _uri(figure: Figure, axes: Axes) -> str:
    for text in axes.legend(fontsize="small").get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is not mathematics
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode("ascii")
