"""`bge-rerank doctor`: what is installed, where a model would run, whether it scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.options import DeviceOptions

if TYPE_CHECKING:
    from bge_rerank_integrations.tools.doctor import Report


@option.with_flags
def doctor(
    *,
    as_json: option.AsJson = False,
    model: Annotated[
        str | None, typer.Option(help="Model to test; by default one that is here already.")
    ] = None,
    options: Annotated[DeviceOptions, option.Only("device", "precision")],
) -> None:
    """Check this installation and test that it scores.

    Prints the installed packages, where a model would run and why, and problems with their
    remedies. Exits with 1 if the self-test fails.
    """
    from bge_rerank_integrations.tools.doctor import examine

    report = examine(model, **options.given())
    if as_json:
        print(json.dumps(asdict(report), ensure_ascii=False, indent=2))
    else:
        for line in _report_lines(report):
            print(line)
    if report.self_test.outcome == "failed":
        raise typer.Exit(1)


def _report_lines(report: Report) -> Iterator[str]:
    yield "Installed"
    rows = {"python": report.python, "platform": report.platform, **report.packages}
    for name, version in rows.items():
        yield f"  {name:<25}{version or 'not installed'}"
    if report.hardware is not None:
        yield "Hardware"
        for name, value in asdict(report.hardware).items():
            yield f"  {name:<25}{value or 'none' if name == 'cuda' else value}"
    if report.hub is not None:
        yield "Model cache"
        offline = ", downloads are switched off (HF_HUB_OFFLINE)" if report.hub.offline else ""
        yield f"  {report.hub.folder}{offline}"
    test = report.self_test
    if plan := test.plan or report.plan:
        yield "Device plan" if test.plan is None else f"Device plan of {test.model}"
        yield from (f"  {line}" for line in str(plan).splitlines())
    yield "Self-test"
    yield f"  {test.outcome}, {test.model}: {test.detail}"
    if test.speed is not None:
        speed = test.speed
        yield (
            f"  1 query x {speed.passages} passages: {speed.seconds:.3f} s, "
            f"{speed.tokens} tokens of passages, {speed.tokens_per_second:,.0f} tokens/s"
        )
    yield "  bge-rerank verify MODEL compares a model's scores with the reference libraries"
    yield "Problems"
    yield from (f"  - {problem}" for problem in report.problems)
    if not report.problems:
        yield "  none"
