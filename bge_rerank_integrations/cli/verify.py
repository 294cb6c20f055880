"""`bge-rerank verify`: are the scores of a model right on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.options import HubOptions, ScorerOptions


@option.with_flags
def verify(
    model: Annotated[str, typer.Argument(help="Hub id or folder.")],
    *,
    options: Annotated[
        ScorerOptions,
        option.Only(
            "backend", "device", "precision", "base_url", "dialect", *HubOptions.model_fields
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference of a raw score; 2e-5, or 0.05 in half precision."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a report for a bug.")
    ] = None,
) -> None:
    """Compare the scores of MODEL with reference libraries.

    Fixed pairs are scored here and, one at a time, by transformers, sentence-transformers and
    FlagEmbedding, and compared with the scores that the model's card publishes. With --url the
    scores of a server are compared. Exits with 1 if a score is wrong.
    """
    from bge_rerank_integrations.tools.verify import verify as compare

    asked = options.given()
    url = asked.pop("base_url", None)
    found = compare(model, base_url=url, tolerance=tolerance, **asked)
    print(found)
    if report is not None:
        found.save(report)
    if found.verdict == "wrong":
        raise typer.Exit(1)
