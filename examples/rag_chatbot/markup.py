"""Texts of others as HTML that shows them and does nothing else."""

from collections.abc import Iterable, Sequence
from html import escape

from rag_chatbot.answers import Source, Turn
from rag_chatbot.playground import Ranking

# the page's HTML component fills in ${...}, {{...}} and @children, wherever they come from
TEMPLATE_SIGNS = str.maketrans({sign: f"&#{ord(sign)};" for sign in "${}@`\\"})

CSS = """
.texts {font-size: 0.95rem; line-height: 1.5}
.texts .box {border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: 0.6rem 0.8rem; margin: 0 0 0.6rem 0}
.texts .about {opacity: 0.75; font-size: 0.85rem}
.texts .about p {margin: 0}
.texts b, .texts h4 {font-weight: 600}
.texts p {margin: 0.2rem 0; white-space: pre-wrap; overflow-wrap: anywhere}
.texts mark {background: #fde68a; color: #1f2937; border-radius: 3px; padding: 0 2px}
.texts .note {border-left: 4px solid #d97706; padding: 0.3rem 0.7rem; margin: 0 0 0.6rem 0}
.texts .error {border-left: 4px solid #dc2626; padding: 0.3rem 0.7rem; margin: 0 0 0.6rem 0}
.texts .side {display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr))}
.texts .up {color: #15803d} .texts .down {color: #b91c1c} .texts .dropped {opacity: 0.55}
.dark .texts .up {color: #4ade80} .dark .texts .down {color: #f87171}
.texts pre {white-space: pre-wrap; font-size: 0.8rem}
.texts.turns {min-height: 26rem; display: flex; flex-direction: column; gap: 0.6rem}
.texts .turn {border: 1px solid var(--border-color-primary); border-radius: 8px; max-width: 90%;
  padding: 0.5rem 0.8rem; align-self: flex-start}
.texts .turn.user {align-self: flex-end; background: var(--background-fill-secondary)}
.texts h4 {margin: 0 0 0.4rem 0; overflow-wrap: anywhere}
"""


def plain(text: str) -> str:
    """The text as HTML that reads as the text does."""
    return escape(text).translate(TEMPLATE_SIGNS)


def messages(notes: Iterable[str], *, kind: str = "note") -> str:
    """Each message in a box of its own; `kind` is "note" or "error"."""
    return _block("".join(f'<p class="{kind}">{plain(note)}</p>' for note in notes))


def conversation(turns: Iterable[Turn]) -> str:
    """The messages one below the other, each in a box at its speaker's side."""
    boxes = (
        f'<div class="turn {turn["role"]}"><p>{plain(turn["content"])}</p></div>' for turn in turns
    )
    return f'<div class="texts turns">{"".join(boxes)}</div>'


def sources(found: Sequence[Source]) -> str:
    """The numbered passages, each with its source, score, and evidence marked."""
    return _block("".join(map(_source, found)))


def _source(source: Source) -> str:
    score = "not scored" if source.score is None else f"score {source.score:.3f}"
    about = f"<b>[{source.number}]</b> {plain(source.source)} &middot; {score}"
    text = marked(source.text, source.evidence)
    return f'<div class="box"><div class="about">{about}</div><p>{text}</p></div>'


def marked(text: str, span: tuple[int, int] | None) -> str:
    """The text with the span between marks."""
    if span is None:
        return plain(text)
    start, end = span
    return f"{plain(text[:start])}<mark>{plain(text[start:end])}</mark>{plain(text[end:])}"


def comparison(candidates: Sequence[str], rankings: Sequence[Ranking]) -> str:
    """The order that was given beside the order of each reranker, with how far each one moved."""
    given = "".join(
        f'<div class="box"><div class="about"><b>{place}</b></div><p>{plain(text)}</p></div>'
        for place, text in enumerate(candidates, start=1)
    )
    columns = [f"<div><h4>First stage</h4>{given}</div>"]
    columns += [_column(candidates, ranking) for ranking in rankings]
    return _block(f'<div class="side">{"".join(columns)}</div>')


def _column(candidates: Sequence[str], ranking: Ranking) -> str:
    boxes = []
    for place, result in enumerate(ranking.results, start=1):
        evidence = result.evidence
        span = None if evidence is None else (evidence.start, evidence.end)
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
    notes = messages(ranking.notes) if ranking.notes else ""
    heading = f"<h4>{plain(ranking.options.model)}</h4>"
    return f"<div>{heading}{notes}{''.join(boxes)}{_facts(ranking)}</div>"


def moved(before: int, after: int) -> str:
    """From which place it came, and an arrow."""
    if before == after:
        return "&#61; stayed"
    kind, arrow = ("up", "&#9650;") if after < before else ("down", "&#9660;")
    return f'<span class="{kind}">{arrow} {abs(before - after)}</span>, was {before}'


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
