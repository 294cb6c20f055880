"""`bge-rerank models`: BGE's models, those on this machine, and published results."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bge_rerank_integrations.base.models import known_models
from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.cli.table import print_table, printable
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.tools.model_cards import describe_model, list_models, side_by_side

if TYPE_CHECKING:
    from bge_rerank_integrations.tools.model_cards import ModelDescription

STATED_NOWHERE = "none stated"


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
    side by side, of all models if no NAMES are given. This package did not measure them.

    Any other cross-encoder with one label, or embedder, can be named by its hub id or folder.
    """
    place = None if hub.cache_dir is None else str(hub.cache_dir)
    if not names and not compare:
        _list_models(place, as_json=as_json)
        return
    if not names:
        hub = HubOptions(cache_dir=place, local_files_only=True)
    wanted = dict.fromkeys(names or [spec.id for spec in known_models()])
    found = [describe_model(name, hub) for name in wanted]
    if as_json:
        _print_json(asdict(description) for description in found)
    elif compare:
        _print_side_by_side(found)
    else:
        for description in found:
            _print_description(description)


def _list_models(cache_dir: str | None, *, as_json: bool) -> None:
    found = list_models(cache_dir)
    if as_json:
        _print_json({**asdict(spec), "here": here} for spec, here in found)
        return
    words = {True: "yes", False: "no", None: "?"}
    rows: list[tuple[object, ...]] = [
        ("model", "family", "size", "languages", "tokens", "licence", "here")
    ]
    for spec, here in found:
        facts = (spec.family, spec.parameters, spec.languages, spec.max_length, spec.license)
        rows.append((spec.id, *facts, words[here]))
    print_table(rows)


def _print_description(description: "ModelDescription") -> None:
    facts = {
        "model": description.id,
        "family": description.family,
        "size": description.parameters,
        "languages": description.languages,
        "tokens": description.max_length,
        "licence": description.license,
        "card": description.card,
    }
    stated = [(name, "not stated" if fact is None else fact) for name, fact in facts.items()]
    print_table(stated if description.results else [*stated, ("results", STATED_NOWHERE)])
    for results in description.results:
        print(printable(f"results: {results.benchmark} ({results.metric})"))
        print_table([(name, _figure(v)) for name, v in results.figures.items()], indent="  ")
        print(printable(f"  stated in: {results.source}"))
        if results.note:
            print(printable(f"  {results.note}"))
    print()


def _print_side_by_side(found: "Sequence[ModelDescription]") -> None:
    for (benchmark, metric), by_model in side_by_side(found).items():
        columns = list(dict.fromkeys(name for r in by_model.values() for name in r.figures))
        print(printable(f"{benchmark} ({metric})"))
        rows = [
            (model, *(_figure(results.figures.get(column, "-")) for column in columns))
            for model, results in by_model.items()
        ]
        print_table([("model", *columns), *rows])
        for source in dict.fromkeys(results.source for results in by_model.values()):
            print(printable(f"stated in: {source}"))
        for model, results in by_model.items():
            if results.note:
                print(printable(f"{model}: {results.note}"))
        print()
    if silent := [description.id for description in found if not description.results]:
        print(printable(f"{STATED_NOWHERE}: {', '.join(silent)}"))


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
