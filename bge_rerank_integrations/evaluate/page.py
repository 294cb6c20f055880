"""The report as one page that loads nothing: not a script, not a font, not an image from elsewhere.

Every text from the data or the caller is escaped, and the page forbids scripts besides.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from bge_rerank_integrations.base.html import table_of_escaped
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.evaluate.bootstrap import Difference, Estimate
from bge_rerank_integrations.evaluate.charts import (
    depth_chart,
    difference_chart,
    figure_type,
    letter,
    score_chart,
)
from bge_rerank_integrations.evaluate.report import Change, Latency, Report, RerankerResult
from bge_rerank_integrations.evaluate.verdict import recommendations

LONGEST = 600
"""Characters of a text that the page shows."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
.verdict { border-left: 4px solid #0b6e99; background: #f2f7f9; padding: .8rem 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #ddd;
  vertical-align: top; }
th:first-child, td:first-child, .text { text-align: left; }
.text { overflow-wrap: anywhere; max-width: 22rem; }
small, .note { color: #555; } img { max-width: 100%; }
"""


def check_page(file: Path) -> None:
    """Raise now what `write_html` would after hours: `MissingExtra`, or `InvalidInputError`."""
    figure_type()
    if not file.parent.is_dir():
        raise InvalidInputError(f"{file} cannot be written: there is no folder {file.parent}")


def write_html(report: Report, file: str | Path) -> None:
    """Write the page, as UTF-8. It holds texts of the questions and passages that changed most.

    Raises `MissingExtra` without matplotlib, of the `eval` extra, and `OSError` for a file that
    cannot be written.
    """
    Path(file).write_text(html_page(report), encoding="utf-8", errors="backslashreplace")


def html_page(report: Report) -> str:
    """The whole page."""
    title = escape(report.title)
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        _about(report),
        "<h2>Quality</h2>",
        _quality(report),
        _comparisons(report),
        "<h2>How many candidates to rerank</h2>",
        _image(depth_chart(report), f"{report.main} by the number of candidates reranked"),
        *(_depths(report, place) for place in range(len(report.rerankers))),
        "<h2>Question by question</h2>",
        _image(difference_chart(report), f"change of {report.main}, question by question"),
        *(_reranker(report, place) for place in range(len(report.rerankers))),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _about(report: Report) -> str:
    found = report.candidates
    whole = (
        f"{report.questions} questions, {found.mean:.0f} candidates each on average, {found.most} "
        f"at most. The candidates hold {found.recall:.1%} of the relevant passages, and at least "
        f"one for {found.answerable:.1%} of the questions: no reranker gets beyond that."
    )
    parts = [whole]
    if found.none_found:
        parts.append(f"{found.none_found} questions have no candidates and count as 0.")
    if report.left_out:
        parts.append(f"{report.left_out} questions without a relevant passage are left out.")
    parts.append(
        f"Brackets are 95% intervals of a paired bootstrap over questions ({report.resamples:,} "
        f"resamples, seed {report.seed}); p-values are not corrected for the number of comparisons."
    )
    return f"<p>{escape(' '.join(parts))}</p>"


def _quality(report: Report) -> str:
    names = list(report.first_stage)
    rows = [["not reranked", *(_estimate(report.first_stage[name]) for name in names), ""]]
    for place, result in enumerate(report.rerankers):
        rows.append(
            [
                f"<b>{letter(place)}</b> {escape(result.name)}",
                *(
                    f"{_estimate(result.measures[name])}<br>{_gain(result.gains[name])}"
                    for name in names
                ),
                _latency(result.latency),
            ]
        )
    best = report.candidates.best
    rows.append(["best possible", *(f"{best[name]:.3f}" for name in names), ""])
    return table_of_escaped(["", *map(escape, names), "time a question"], rows)


def _comparisons(report: Report) -> str:
    letters = {result.name: letter(place) for place, result in enumerate(report.rerankers)}
    rows = [
        [f"{letters[c.second]} over {letters[c.first]}", _gain(c.difference)]
        for c in report.comparisons
    ]
    return table_of_escaped(["between rerankers", escape(report.main)], rows) if rows else ""


def _depths(report: Report, place: int) -> str:
    result = report.rerankers[place]
    rows = [
        [
            str(row.depth),
            _estimate(row.quality),
            _gain(row.gain),
            f"{row.recall:.3f}",
            f"{row.seconds * 1000:.0f} ms",
        ]
        for row in result.depths
    ]
    head = ["candidates", escape(report.main), "gain", "recall of these", "time, estimated"]
    return f"<h3>{letter(place)} {escape(result.name)}</h3>" + table_of_escaped(head, rows)


def _reranker(report: Report, place: int) -> str:
    result = report.rerankers[place]
    verdict = report.verdicts[result.name]
    said = recommendations(result.depth, result.top_n, result.threshold)
    parts = [
        f"<h2>{letter(place)} {escape(result.name)}</h2>",
        f'<p class="note">{escape(result.scorer)}</p>',
        f'<p class="verdict">{escape(verdict)}</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in said if sentence not in verdict),
        _image(score_chart(result), "raw scores of relevant and other candidates"),
        _changes("Greatest gains", result, result.wins, report.main),
        _changes("Greatest losses", result, result.losses, report.main),
    ]
    return "\n".join(parts)


def _changes(title: str, result: RerankerResult, changes: Iterable[Change], main: str) -> str:
    rows = [
        [
            f'<div class="text">{_text(change.question)}</div>',
            f"{change.before:.3f} → {change.after:.3f}",
            f"{change.rank_before or '-'} → {change.rank_after or '-'}",
            f'<div class="text">{_text(change.top_before)}</div>',
            f'<div class="text">{_text(change.top_after)}</div>',
        ]
        for change in changes
    ]
    if not rows:
        return f"<h3>{title}</h3><p>None.</p>"
    head = ["question", escape(main), "first relevant at", "first before", "first after"]
    return f"<h3>{title} of {escape(result.name)}</h3>" + table_of_escaped(head, rows)


def _image(uri: str, alt: str) -> str:
    return f'<p><img src="{uri}" alt="{escape(alt)}"></p>'


def _text(text: str) -> str:
    return escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} <small>[{estimate.low:.3f}, {estimate.high:.3f}]</small>"


def _latency(latency: Latency) -> str:
    return (
        f"{latency.median * 1000:.0f} ms<br><small>95% within {latency.p95 * 1000:.0f} ms</small>"
    )


def _gain(gain: Difference) -> str:
    p = "p &lt; 0.001" if gain.p_value < 0.001 else f"p = {gain.p_value:.3f}"
    return (
        f"<small>{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] {p}; "
        f"{gain.wins} better, {gain.losses} worse</small>"
    )
