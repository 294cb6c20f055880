"""Texts of others as HTML that shows them and does nothing else."""

import re
from collections.abc import Collection, Iterable, Sequence
from html import escape

from rag_chatbot.answers import CITATION, Source, Turn
from rag_chatbot.playground import Failure, Ranking

EMPTY = "Ask a question, or click one below."
SHORT = 120
"""Characters of a candidate next to the lines of its movement, where it is cut to one line."""

# the page's HTML component fills in ${...}, {{...}} and @children, wherever they come from
TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "${}@`\\"})


def plain(text: str) -> str:
    """The text as HTML that reads as the text does."""
    return escape(text).translate(TEMPLATE_SIGNS)


def messages(notes: Iterable[str], *, kind: str = "note") -> str:
    """Each message in a box of its own; `kind` is "note" or "error"."""
    return _block("".join(f'<p class="{kind}">{plain(note)}</p>' for note in notes))


def header(about: str) -> str:
    """The page's title, what it is, and a line on what answers here."""
    return (
        '<div class="head"><h1>BGE reranker chat</h1><p>Ask your files: a reranker reads each '
        "passage together with your question, and the best passages answer.</p>"
        f'<p class="about">{plain(about)}</p></div>'
    )


def conversation(turns: Sequence[Turn], *, sources: Collection[int] = (), waiting: str = "") -> str:
    """The messages one below the other, each in a box at its speaker's side.

    In the last one the numbers of `sources` lead to them. `waiting` stands where the answer comes.
    """
    boxes = [f'<p class="about">{plain(EMPTY)}</p>'] if not turns else []
    for number, turn in enumerate(turns, start=1):
        text = plain(turn["content"])
        if number == len(turns):
            text = CITATION.sub(lambda found: _link(found, sources), text)
        boxes.append(f'<div class="turn {turn["role"]}"><p>{text}</p></div>')
    if waiting:
        boxes.append(
            f'<div class="turn"><p class="waiting" role="status">{plain(waiting)}</p></div>'
        )
    return f'<div class="texts turns" aria-live="polite">{"".join(boxes)}</div>'


def _link(found: re.Match[str], sources: Collection[int]) -> str:
    number = int(found[1])
    if number not in sources:
        return found[0]
    return f'<a class="cite" href="#source-{number}">{found[0]}</a>'


def waiting(text: str) -> str:
    """A sign that something is under way."""
    return _block(f'<p class="waiting" role="status">{plain(text)}</p>')


def sources(found: Sequence[Source]) -> str:
    """The numbered passages, each with its source, score, and evidence marked."""
    if not found:
        return ""
    reranked = any(source.score is not None for source in found)
    return _block(f"<h4>Sources {badge(reranked=reranked)}</h4>" + "".join(map(_source, found)))


def badge(*, reranked: bool) -> str:
    """Whether a reranker decided the order."""
    if reranked:
        return '<span class="badge reranked">&#10003; reranked</span>'
    return '<span class="badge unranked">not reranked</span>'


def _source(source: Source) -> str:
    score = "not scored" if source.score is None else f"score {source.score:.3f}"
    about = f"<b>[{source.number}]</b> {plain(source.source)} &middot; {score}"
    text = marked(source.text, source.evidence)
    kind = "box unranked" if source.score is None else "box"
    return (
        f'<div class="{kind}" id="source-{source.number}"><div class="about">{about}</div>'
        f"<p>{text}</p></div>"
    )


def marked(text: str, span: tuple[int, int] | None) -> str:
    """The text with the span between marks."""
    if span is None:
        return plain(text)
    start, end = span
    return f"{plain(text[:start])}<mark>{plain(text[start:end])}</mark>{plain(text[end:])}"


def comparison(
    candidates: Sequence[str], outcomes: Sequence[Ranking | Failure], *, relevant_from: float
) -> str:
    """For each reranker how the candidates moved, and its order; for one that failed, why.

    Evidence is marked in candidates that are relevant: see `Ranking.relevant`.
    """
    columns = [
        _failure(outcome)
        if isinstance(outcome, Failure)
        else _column(candidates, outcome, relevant_from)
        for outcome in outcomes
    ]
    return _block(f'<div class="side">{"".join(columns)}</div>')


def _failure(failure: Failure) -> str:
    return (
        f'<div class="column"><h4>{plain(failure.model)}</h4>'
        f'<p class="error">{plain(failure.message)}</p></div>'
    )


def _column(candidates: Sequence[str], ranking: Ranking, relevant_from: float) -> str:
    boxes = []
    unmarked = 0
    for place, result in enumerate(ranking.results, start=1):
        evidence = result.evidence
        span = None if evidence is None else (evidence.start, evidence.end)
        if span is not None and not ranking.relevant(result, relevant_from):
            span = None
            unmarked += 1
        score = "not scored"
        if result.scored:
            score = f"score {result.score:.4f} &middot; raw {result.raw_score:+.3f}"
        boxes.append(
            f'<div class="box"><div class="about"><b>{place}</b> {moved(result.index + 1, place)} '
            f"&middot; {score}</div><p>{marked(candidates[result.index], span)}</p></div>"
        )
    dropped = len(candidates) - len(ranking.results)
    if dropped:
        why = plain(ranking.trace.kept_by or "")
        boxes.append(f'<p class="about">{dropped} were not kept{why and f": {why}"}.</p>')
    notes = list(ranking.notes)
    if unmarked and unmarked == len(ranking.results):
        notes.append(_nothing_marked(ranking, relevant_from))
    heading = f"<h4>{plain(ranking.options.model)}</h4>"
    told = "".join(f'<p class="note">{plain(note)}</p>' for note in notes)
    drawn = _moves(candidates, ranking)
    return f'<div class="column">{heading}{told}{drawn}{"".join(boxes)}{_facts(ranking)}</div>'


def _nothing_marked(ranking: Ranking, relevant_from: float) -> str:
    if ranking.trace.scale == "cosine":
        return "No evidence is marked: say with score_threshold which cosine is relevant here."
    return f"No evidence is marked: no candidate scores {relevant_from:g} or more."


def _moves(candidates: Sequence[str], ranking: Ranking) -> str:
    """Both orders side by side, with a line from each candidate's old place to its new one."""
    count = len(candidates)
    before = "".join(
        f"<li><b>{place}</b> {plain(text[:SHORT])}</li>"
        for place, text in enumerate(candidates, start=1)
    )
    after, lines = "", ""
    for place, result in enumerate(ranking.results):
        after += (
            f"<li>{_arrow(result.index, place)} <b>{result.index + 1}</b> "
            f"{plain(candidates[result.index][:SHORT])}</li>"
        )
        lines += (
            f'<line class="{_way(result.index, place)}" x1="0" y1="{result.index + 0.5}" x2="10" '
            f'y2="{place + 0.5}"></line>'
        )
    return (
        f'<div class="moves" style="--rows:{count}">'
        f"<header>First stage {badge(reranked=False)}</header><span></span>"
        f"<header>{badge(reranked=True)}</header>"
        f"<ol>{before}</ol>"
        f'<svg viewBox="0 0 10 {count}" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'
        f"<ol>{after}</ol></div>"
    )


def _way(before: int, after: int) -> str:
    return "same" if before == after else "up" if after < before else "down"


def _arrow(before: int, after: int) -> str:
    way = _way(before, after)
    if way == "same":
        return "&#61;"
    sign = "&#9650;" if way == "up" else "&#9660;"
    return f'<span class="{way}">{sign}&nbsp;{abs(before - after)}</span>'


def moved(before: int, after: int) -> str:
    """From which place it came, and an arrow."""
    return (
        f"{_arrow(before, after)} stayed"
        if before == after
        else f"{_arrow(before, after)}, was {before}"
    )


def _facts(ranking: Ranking) -> str:
    times = ", ".join(
        f"{name} {1000 * seconds:.0f} ms" for name, seconds in ranking.trace.seconds.items()
    )
    counts = ", ".join(f"{number} {name}" for name, number in ranking.trace.counts.items())
    return (
        f'<div class="box"><div class="about">Time: {plain(times)}<br>Pairs: {plain(counts)}</div>'
        f"<pre>{plain(ranking.plan)}</pre></div>"
    )


def _block(inside: str) -> str:
    return f'<div class="texts">{inside}</div>'
