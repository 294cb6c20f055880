"""Write docs/before-after.svg: one question of the demo, before and after reranking.

    PYTHONPATH=.:examples .venv/bin/python scripts/draw_demo.py

The candidates come from BM25 over the corpus of the examples, the order and the scores from the
embedded model. `tests/docs/test_readme.py` compares the picture with a new one.
"""

from io import StringIO
from pathlib import Path

import matplotlib as mpl
from first_stage import open_first_stage, read_relevant, read_texts
from matplotlib.figure import Figure

from bge_rerank_integrations import load_reranker

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "before-after.svg"
QUESTION = "What was Warsaw's population in 1901?"
DEPTH, SHOWN = 20, 8
GREEN, GREY, INK = "#1a7f37", "#8c959f", "#24292f"


def draw() -> str:
    """The picture as SVG: each line joins a passage's two ranks; the relevant one is green."""
    (question,) = [text for text in read_texts("queries") if text.text == QUESTION]
    relevant = read_relevant()[question.id]
    (found,) = open_first_stage("bm25").candidates([QUESTION], DEPTH)
    passages = [passage for passage, _ in found]
    results = load_reranker("offline").rerank(QUESTION, [passage.text for passage in passages])

    figure = Figure(figsize=(11, 3.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 11)
    axes.set_ylim(SHOWN + 0.8, -1.3)
    axes.text(0.2, -0.8, f"“{QUESTION}”", weight="bold", color=INK, va="center")
    axes.text(4.8, 0, "BM25", weight="bold", color=INK, ha="right", va="center")
    axes.text(6.2, 0, "reranked", weight="bold", color=INK, va="center")
    for rank, passage in enumerate(passages[:SHOWN], start=1):
        color = GREEN if passage.id == relevant else INK
        axes.text(4.8, rank, str(rank), color=color, ha="right", va="center")
        axes.text(4.55, rank, shorten(passage.text), color=color, ha="right", va="center")
    for rank, result in enumerate(results[:SHOWN], start=1):
        passage, before = passages[result.index], result.index + 1
        green = passage.id == relevant
        color = GREEN if green else INK
        axes.text(6.2, rank, str(rank), color=color, va="center")
        axes.text(6.5, rank, f"{result.score:.2f}", color=color, va="center")
        axes.text(7, rank, shorten(passage.text), color=color, va="center")
        if before <= SHOWN:
            color, width = (GREEN, 2.5) if green else (GREY, 0.8)
            axes.plot((4.9, 6.1), (before, rank), color=color, lw=width)
    picture = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "demo"}):
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return picture.getvalue()


def shorten(text: str, width: int = 50) -> str:
    """The beginning of a long text."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
