"""The shell command `bge-rerank`: reads texts, prints rankings, models and the doctor's report."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bge_rerank_integrations.errors import MissingExtra, RerankError
from bge_rerank_integrations.load import ScorerOptions, load_reranker
from bge_rerank_integrations.passage_lines import (
    Passage,
    UnreadableInput,
    read_json_passages,
    read_requests,
    read_text_passages,
    result_rows,
)
from bge_rerank_integrations.registry import DEFAULT_MODEL
from bge_rerank_integrations.types import HeadIndexing, Precision, SpecialTokens

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    # the installed script imports this module first of all, so any exception would be a traceback
    raise SystemExit(f"bge-rerank: {MissingExtra(str(error.name), 'cli')}") from None

from bge_rerank_integrations.sweep_command import sweep_layers_command  # needs typer

if TYPE_CHECKING:
    from bge_rerank_integrations.doctor import Report
    from bge_rerank_integrations.reranker import Reranker
    from bge_rerank_integrations.types import RerankResult

app = typer.Typer(
    help="Order passages by how well they answer a query, with BAAI's BGE rerankers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command; exit with 2 for input that cannot be read, 1 for any other failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # half a surrogate pair cannot be written as UTF-8, but its escape is valid JSON
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(format="bge-rerank: %(message)s")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except UnreadableInput as error:
        _fail(error, 2)
    except RerankError as error:
        _fail(error, 1)
    except OSError as error:
        # what could not be written is not to be tried again, and complained of, at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print("bge-rerank:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(code)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, xpu or mps; chosen if left out.")
]
Number = Annotated[Precision, typer.Option(help="Number format of the forward pass.")]
Cache = Annotated[str | None, typer.Option(metavar="FOLDER", help="The model cache's folder.")]


@app.command()
def rerank(
    query: Annotated[str | None, typer.Argument(help="What to look for; see above.")] = None,
    passages: Annotated[list[str] | None, typer.Argument(help="The passages.")] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Read from here, not standard input."),
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="The input is JSON lines, whatever its name.")
    ] = False,
    as_json: AsJson = False,
    model: Annotated[str, typer.Option(help="Hub id, folder or 'offline'.")] = DEFAULT_MODEL,
    top_n: Annotated[int | None, typer.Option(help="Keep the best N.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep passages whose score is at least this.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option(help="Show a logit as its sigmoid, between 0 and 1.")
    ] = True,
    device: Device = None,
    precision: Number = "auto",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of query and passage together; 512 if left out.")
    ] = None,
    query_max_length: Annotated[
        int | None, typer.Option(help="Tokens of the query; 3/4 of --max-length if left out.")
    ] = None,
    query_instruction: Annotated[
        str | None, typer.Option(help="Text put before the query.")
    ] = None,
    passage_instruction: Annotated[
        str | None, typer.Option(help="Text put before each passage.")
    ] = None,
    special_tokens: Annotated[
        SpecialTokens, typer.Option(help="What a control token such as </s> in a text is.")
    ] = "literal",
    prompt: Annotated[str | None, typer.Option(help="An LLM reranker's question.")] = None,
    cutoff_layers: Annotated[
        list[int] | None, typer.Option(help="Layer to score at; the last if left out.")
    ] = None,
    compress_ratio: Annotated[
        int, typer.Option(help="Average this many passage tokens into one.")
    ] = 1,
    compress_layers: Annotated[
        list[int] | None, typer.Option(help="Layer to compress before; may be repeated.")
    ] = None,
    head_indexing: Annotated[
        HeadIndexing, typer.Option(help="Which head of a lightweight model a layer uses.")
    ] = "request",
    batch_size: Annotated[int | None, typer.Option(help="Most pairs in a batch.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Most tokens in a batch.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    cache_dir: Cache = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never download.")
    ] = False,
    show_progress: Annotated[
        bool | None,
        typer.Option(
            "--show-progress/--no-progress", help="By default if the errors go to a terminal."
        ),
    ] = None,
) -> None:
    """Order passages by how well they answer QUERY, the best first.

    Passages are the arguments after QUERY, else the lines of --file, else those of standard
    input; blank lines are left out. In JSON lines (a --file that ends in .jsonl, or --jsonl) each
    line is a text or an object with the text under "passage" or "text"; its other keys are carried
    through, except for index, score and raw_score, which are written anew. Put -- before a query
    or passage that begins with a dash.

    On a terminal a table is printed. Otherwise, and with --json, each line is an object: index
    (the passage's position in the input, from 0), score, raw_score, passage, carried keys.

    Without QUERY each line of the input is a whole request,
    {"query": "...", "passages": ["...", {"text": "...", "id": 7}]}, and is answered as soon as it
    is read by the same object with "results" in place of "passages".

    A private model needs HF_TOKEN in the environment.
    """
    options: ScorerOptions = {
        "device": device,
        "precision": precision,
        "max_length": max_length,
        "query_max_length": query_max_length,
        "query_instruction": query_instruction,
        "passage_instruction": passage_instruction,
        "special_tokens": special_tokens,
        "prompt": prompt,
        "cutoff_layers": cutoff_layers or None,
        "compress_ratio": compress_ratio,
        "compress_layers": compress_layers or (),
        "head_indexing": head_indexing,
        "batch_size": batch_size,
        "max_batch_tokens": max_batch_tokens,
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        # a bar for every line of a stream of requests would be noise
        "show_progress": query is not None and sys.stderr.isatty()
        if show_progress is None
        else show_progress,
    }

    @cache
    def load() -> Reranker:
        return load_reranker(
            model, top_n=top_n, score_threshold=threshold, normalize=normalize, **options
        )

    if query is None:
        _answer_requests(file, load)
        return
    if passages and file is not None:
        raise UnreadableInput(f"give passages after the query or in --file {file}, not both")
    if passages:
        given = [Passage(text, {}) for text in passages]
    elif jsonl or (file is not None and file.suffix.lower() == ".jsonl"):
        given = list(read_json_passages(file))
    else:
        given = list(read_text_passages(file))
    if not given:
        return
    results = load().rerank(query, [passage.text for passage in given])
    if as_json or not sys.stdout.isatty():
        for row in result_rows(given, results):
            print(json.dumps(row, ensure_ascii=False))
    else:
        _print_ranking(given, results)


@app.command()
def models(*, as_json: AsJson = False, cache_dir: Cache = None) -> None:
    """List BGE's models, and which of them are on this machine.

    Any other cross-encoder with one label, or embedder, can be named by its hub id or folder.
    """
    from bge_rerank_integrations.doctor import list_models

    states = list_models(cache_dir)
    if as_json:
        for state in states:
            row = {**asdict(state.spec), "here": state.here}
            print(json.dumps(row, ensure_ascii=False))
        return
    columns = ("model", "family", "size", "languages", "tokens", "licence", "here")
    table = Table(*columns, box=None, pad_edge=False)
    words = {True: "yes", False: "no", None: "?"}
    for state in states:
        spec = state.spec
        table.add_row(
            *(spec.id, spec.family, spec.parameters, spec.languages, str(spec.max_length)),
            *(spec.license, words[state.here]),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def doctor(
    *,
    as_json: AsJson = False,
    model: Annotated[
        str | None, typer.Option(help="Model to test; by default one that is here already.")
    ] = None,
    device: Device = None,
    precision: Number = "auto",
) -> None:
    """Say what is installed, where a model would run and why, and test that it scores.

    Exits with 1 if the self-test fails.
    """
    from bge_rerank_integrations.doctor import examine

    report = examine(model, device=device, precision=precision)
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False, indent=2))
    else:
        for line in _report_lines(report):
            print(line)
    if report.self_test.outcome == "failed":
        raise typer.Exit(1)


app.command("sweep-layers")(sweep_layers_command)


def _answer_requests(file: Path | None, load: Callable[[], Reranker]) -> None:
    """Print the answer to each request before the next one is read."""
    for request in read_requests(file):
        given = request.passages
        try:
            results = load().rerank(request.query, [p.text for p in given]) if given else []
        except RerankError as error:
            raise RerankError(f"{request.place}: {error}") from error
        answer = {**request.carried, "results": list(result_rows(given, results))}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def _print_ranking(given: Sequence[Passage], results: Iterable[RerankResult]) -> None:
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("rank", "score", "raw"):
        table.add_column(name, justify="right")
    table.add_column("passage", no_wrap=True, overflow="ellipsis", ratio=1)
    for rank, result in enumerate(results, start=1):
        start = " ".join(given[result.index].text[:1000].split())
        # a passage must not be able to send escape sequences to the terminal
        start = "".join(character for character in start if character.isprintable())
        table.add_row(str(rank), f"{result.score:.4f}", f"{result.raw_score:.3f}", Text(start))
    Console().print(table)


def _report_lines(report: Report) -> Iterator[str]:
    yield "Installed"
    rows = {"python": report.python, "platform": report.platform, **report.packages}
    for name, version in rows.items():
        yield f"  {name:<25}{version or 'not installed'}"
    if report.hardware is not None:
        yield "Hardware"
        for name, value in asdict(report.hardware).items():
            yield f"  {name:<25}{value or 'none' if name == 'cuda' else value}"
    if report.plan is not None:
        yield "Device plan"
        yield from (f"  {line}" for line in str(report.plan).splitlines())
    if report.hub is not None:
        yield "Model cache"
        offline = ", downloads are switched off (HF_HUB_OFFLINE)" if report.hub.offline else ""
        yield f"  {report.hub.folder}{offline}"
    test = report.self_test
    yield "Self-test"
    yield f"  {test.outcome}, {test.model}: {test.detail}"
    if test.plan is not None:
        known = str(report.plan).splitlines()
        yield from (f"  {line}" for line in str(test.plan).splitlines() if line not in known)
    if test.speed is not None:
        speed = test.speed
        yield (
            f"  1 query x {speed.passages} passages: {speed.seconds:.3f} s, "
            f"{speed.tokens} tokens of passages, {speed.tokens_per_second:,.0f} tokens/s"
        )
    if report.problems:
        yield "Problems"
    yield from (f"  - {problem}" for problem in report.problems)


if __name__ == "__main__":
    main()
