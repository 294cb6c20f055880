"""Judged data as commands are given it: a BEIR folder, or a file of JSON lines."""

from pathlib import Path
from typing import Annotated

import typer

from bge_rerank_integrations.errors import UnreadableInput
from bge_rerank_integrations.evaluate.judged import JudgedQuery, read_beir, read_judged_lines

BEIR_FOLDER = typer.Option(
    exists=True,
    file_okay=False,
    help="BEIR folder: corpus.jsonl, queries.jsonl, qrels, and a *.trec run.",
)
"""For a `Path`, or a `Path | None` beside `JudgedLines`."""

JudgedLines = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="JSON lines of judged queries; see above."),
]
Depth = Annotated[int, typer.Option(min=1, help="Candidates of each query of a BEIR folder.")]
FirstQueries = Annotated[int | None, typer.Option(min=1, help="Take only the first N queries.")]


def read_judged(
    data: Path | None, judged: Path | None, *, depth: int, run: Path | None = None
) -> list[JudgedQuery]:
    """The queries of whichever of the two is given.

    Raises `UnreadableInput` if both are or none is, for a `run` without a BEIR folder, and for
    what cannot be read.
    """
    if data is not None and judged is None:
        return read_beir(data, run, depth=depth)
    if judged is None or data is not None:
        raise UnreadableInput("give judged data either as --data FOLDER or as --judged FILE")
    if run is not None:
        raise UnreadableInput("--run holds candidates for a BEIR folder: give that as --data")
    return read_judged_lines(judged)
