"""`bge-rerank models`: BGE's models, and which are here."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from bge_rerank_integrations.cli.options import AsJson, Cache


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
