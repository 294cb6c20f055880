"""`bge-rerank models`: BGE's models, which are here, and what is published of them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bge_rerank_integrations.base.models import known_models
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.tools.model_cards import describe_model, list_models, side_by_side

if TYPE_CHECKING:
    from bge_rerank_integrations.tools.model_cards import ModelDescription

STATED_NOWHERE = "none stated"
_WIDE = 200
"""A narrower terminal wraps the lines, where rich would cut the ids; it heeds no width alone."""


@option.with_flags
def models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Hub ids, folders or 'offline', to describe.")
    ] = None,
    *,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put published results side by side.")
    ] = False,
    as_json: option.AsJson = False,
    hub: Annotated[HubOptions, option.Only("cache_dir", "local_files_only")],
) -> None:
    """List BGE's models, and which are on this machine.

    With NAMES, describe each: family, languages, size, limits, licence, and published results, from
    its card if that is cached or can be fetched, and from this package. With --compare, put results
    side by side, those of all models without NAMES. This package measured none of them.

    Any other cross-encoder with one label, or embedder, can be named by its hub id or folder.
    """
    place = None if hub.cache_dir is None else str(hub.cache_dir)
    if names or compare:
        wanted = names or [spec.id for spec in known_models()]
        found = [
            describe_model(
                name, cache_dir=place, local_files_only=hub.local_files_only or not names
            )
            for name in dict.fromkeys(wanted)
        ]
        if as_json:
            for description in found:
                print(json.dumps(asdict(description), ensure_ascii=False))
        elif compare:
            _print_side_by_side(found)
        else:
            for description in found:
                _print_description(description)
        return
    _list_models(place, as_json=as_json)


def _list_models(cache_dir: str | None, *, as_json: bool) -> None:
    found = list_models(cache_dir)
    if as_json:
        for spec, here in found:
            print(json.dumps({**asdict(spec), "here": here}, ensure_ascii=False))
        return
    columns = ("model", "family", "size", "languages", "tokens", "licence", "here")
    table = Table(*columns, box=None, pad_edge=False)
    words = {True: "yes", False: "no", None: "?"}
    for spec, here in found:
        facts = (spec.family, spec.parameters, spec.languages, str(spec.max_length), spec.license)
        table.add_row(spec.id, *facts, words[here])
    Console(width=_WIDE, height=100).print(table)


def _print_description(description: "ModelDescription") -> None:
    console = _console()
    facts = {
        "model": description.id,
        "family": description.family,
        "size": description.parameters,
        "languages": description.languages,
        "tokens": description.max_length,
        "licence": description.license,
        "card": description.card,
    }
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, _plain("not stated" if fact is None else str(fact)))
    if not description.results:
        table.add_row("results", STATED_NOWHERE)
    console.print(table)
    for results in description.results:
        figures = Table(box=None, pad_edge=False, show_header=False)
        for name, value in results.figures.items():
            figures.add_row(_plain(f"  {name}"), _plain(_figure(value)))
        console.print(_plain(f"results: {results.benchmark} ({results.metric})"))
        console.print(figures)
        console.print(_plain(f"  stated in: {results.source}"))
        if results.note:
            console.print(_plain(f"  {results.note}"))
    console.print()


def _print_side_by_side(found: "Sequence[ModelDescription]") -> None:
    console = Console(width=_WIDE, height=100)  # ids are never cut
    for (benchmark, metric), by_model in side_by_side(found).items():
        columns = list(dict.fromkeys(name for r in by_model.values() for name in r.figures))
        table = Table(box=None, pad_edge=False)
        for name in ("model", *columns):
            table.add_column(_plain(name))
        for model, results in by_model.items():
            cells = [_figure(results.figures[c]) if c in results.figures else "-" for c in columns]
            table.add_row(*map(_plain, (model, *cells)))
        console.print(_plain(f"{benchmark} ({metric})"))
        console.print(table)
        for source in dict.fromkeys(results.source for results in by_model.values()):
            console.print(_plain(f"stated in: {source}"))
        for model, results in by_model.items():
            if results.note:
                console.print(_plain(f"{model}: {results.note}"))
        console.print()
    if silent := [description.id for description in found if not description.results]:
        console.print(_plain(f"{STATED_NOWHERE}: {', '.join(silent)}"))


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDE)


def _plain(text: str) -> Text:
    """A text as it is; a card must not be able to send escape sequences to the terminal."""
    return Text("".join(character for character in text if character.isprintable()))


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
