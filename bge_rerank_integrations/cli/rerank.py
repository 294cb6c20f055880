"""`bge-rerank rerank`: rank passages from the command line, a file or a stream."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_rerank_integrations.base.input_files import (
    Passage,
    read_passages,
    read_requests,
    result_rows,
)
from bge_rerank_integrations.base.models import DEFAULT_MODEL
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.errors import InvalidInputError, RerankError, UnreadableInput
from bge_rerank_integrations.load import RerankerLoadOptions, load_reranker

MIN_ESTIMATED = 200
"""With fewer passages no time is estimated: a sample would be a large part of them."""

if TYPE_CHECKING:
    from bge_rerank_integrations.ranking.reranker import Reranker
    from bge_rerank_integrations.types import RerankResult


@option.with_flags
def rerank(
    query: Annotated[str | None, typer.Argument(help="The query; see above.")] = None,
    passages: Annotated[list[str] | None, typer.Argument(help="The passages.")] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Read this file instead of standard input."),
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="The input is JSON lines, whatever its name.")
    ] = False,
    text_field: Annotated[
        str | None, typer.Option(help="Field or column of the passage; see above.")
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help='Field or column to copy to "id" in the results.')
    ] = None,
    as_json: option.AsJson = False,
    model: option.Model = DEFAULT_MODEL,
    options: RerankerLoadOptions,
    show_progress: option.ShowProgress = None,
) -> None:
    """Order passages by how well they answer QUERY.

    Passages are the arguments after QUERY, else those of --file, else those of standard input: each
    line, in UTF-8, or each row of a file in .jsonl, .ndjson, .csv, .tsv (with a header) or
    .parquet. A row's passage is its "passage", "text", "content", "contents" or "page_content"; a
    "title" is put before a "text" or "contents". The other fields are copied to the results, except
    for index, score, raw_score, scored and, with --explain, evidence, which are written anew. Put
    -- before a query or passage that begins with a dash.

    If scoring takes a minute or longer, an estimate is printed before it begins.

    The best passage comes first. A terminal gets a table. Otherwise, and with --json, each line is
    an object: index (the passage's position in the input, from 0), score, raw_score, passage and
    the carried fields. Passages left unscored by --on-error keep have null scores and "scored":
    false. --explain adds evidence: the start and end of the highest-scoring sentence, in characters
    of the passage, its two scores and its text, or null. The table shows that sentence.

    Without QUERY each line of the input is a request,
    {"query": "...", "passages": ["...", {"text": "...", "id": 7}]}, answered as soon as it is read
    by the same object with "results" instead of "passages".

    A private model needs HF_TOKEN in the environment. The key of a server at --url comes from
    BGE_RERANK_API_KEY or the variable of its dialect, and --model is the model to request from it.
    """
    if show_progress is None:  # a bar for every line of a stream of requests would be noise
        show_progress = query is not None and options.base_url is None and sys.stderr.isatty()
    options.show_progress = show_progress

    @cache
    def load() -> Reranker:
        return load_reranker(model, **options.given())

    if query is None:
        _answer_requests(file, load, explain=options.explain)
        return
    if passages and file is not None:
        raise UnreadableInput(f"give passages after the query or in --file {file}, not both")
    if passages:
        given = [Passage(text, {}) for text in passages]
    else:
        given = read_passages(file, json_lines=jsonl, text_field=text_field, id_field=id_field)
    if not given:
        return
    reranker, texts = load(), [passage.text for passage in given]
    if len(texts) >= MIN_ESTIMATED and options.base_url is None and options.timeout is None:
        quiet = load_reranker(
            model, **{**options.given(), "show_progress": False, "explain": False}
        )
        _say_how_long(quiet, query, texts)
    results = reranker.rerank(query, texts)
    if as_json or not sys.stdout.isatty():
        for row in result_rows(given, results, explain=options.explain):
            print(json.dumps(row, ensure_ascii=False))
    else:
        _print_ranking(given, results)


def _say_how_long(
    reranker: Reranker,
    query: str,
    texts: Sequence[str],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Print an estimate if scoring takes a minute or longer.

    It comes from a sample that grows until it takes a second or has a twentieth of the texts.
    """

    def seconds(some: Sequence[str]) -> float:
        begin = clock()
        reranker.rerank(query, some)
        return clock() - begin

    number, spent, sample = 1, 0.0, texts[:1]
    logging.disable(logging.WARNING)  # the run logs the same with its own numbers
    try:
        seconds(sample)  # the first call is slower
        while spent < 1 and number <= len(texts) // 40:
            number *= 2
            sample = texts[number // 2 :: len(texts) // number]
            spent = seconds(sample)
    except RerankError:
        return  # the run raises it too, with the position in the whole input
    finally:
        logging.disable(logging.NOTSET)
    minutes = round(spent * len(texts) / len(sample) / 60)
    if minutes >= 1:
        needed = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        print(f"bge-rerank: scoring {len(texts):,} passages takes about {needed}", file=sys.stderr)


def _answer_requests(file: Path | None, load: Callable[[], Reranker], *, explain: bool) -> None:
    """Print the answer to each request before the next one is read."""
    for request in read_requests(file):
        given = request.passages
        try:
            results = load().rerank(request.query, [p.text for p in given]) if given else []
        except RerankError as error:
            kind = InvalidInputError if isinstance(error, InvalidInputError) else RerankError
            raise kind(f"{request.place}: {error}") from error
        answer = {**request.carried, "results": list(result_rows(given, results, explain=explain))}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def _print_ranking(given: Sequence[Passage], results: Iterable[RerankResult]) -> None:
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("rank", "score", "raw"):
        table.add_column(name, justify="right")
    table.add_column("passage", no_wrap=True, overflow="ellipsis", ratio=1)
    for rank, result in enumerate(results, start=1):
        text, found = given[result.index].text, result.evidence
        start = " ".join((text[found.start : found.end] if found else text)[:1000].split())
        # a passage must not be able to send escape sequences to the terminal
        start = "".join(character for character in start if character.isprintable())
        score, raw = (
            (f"{result.score:.4f}", f"{result.raw_score:.3f}") if result.scored else ("-", "-")
        )
        table.add_row(str(rank), score, raw, Text(start))
    Console().print(table)
