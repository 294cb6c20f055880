"""`bge-rerank doctor`: what is installed, where a model would run, whether it scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.options import DeviceOptions

if TYPE_CHECKING:
    from bge_rerank_integrations.tools.doctor import Report
    from bge_rerank_integrations.tools.race import Lap


@option.with_flags
def doctor(
    *,
    as_json: option.AsJson = False,
    model: Annotated[
        str | None, typer.Option(help="Model to test; by default one that is here already.")
    ] = None,
    race: Annotated[
        bool, typer.Option("--race", help="Time every back end and precision of --model.")
    ] = False,
    options: Annotated[DeviceOptions, option.Only("device", "precision")],
) -> None:
    """Check this installation and test that it scores.

    Prints the installed packages, where a model would run and why, and problems with their
    remedies. Exits with 1 if the self-test fails.

    With --race the model is timed on torch, ONNX Runtime and OpenVINO in every number format that
    this machine has, with errors against float32. Graphs are written to a temporary folder, which
    takes five bytes for each weight.
    """
    from bge_rerank_integrations.tools.doctor import examine
    from bge_rerank_integrations.tools.race import race as timed
    from bge_rerank_integrations.tools.race import recommend

    if race and model is None:
        raise InvalidInputError("--race needs the model to time: give --model")
    report = examine(model, **options.given())
    laps = timed(str(model), device=options.given().get("device")) if race else []
    if as_json:
        written = asdict(report)
        if race:
            rows = [asdict(lap) for lap in laps]
            written["race"] = {"laps": rows, "recommendation": recommend(laps)}
        print(json.dumps(written, ensure_ascii=False, indent=2))
    else:
        for line in _report_lines(report, laps):
            print(line)
    if report.self_test.outcome == "failed":
        raise typer.Exit(1)


def _report_lines(report: Report, laps: Sequence[Lap]) -> Iterator[str]:
    from bge_rerank_integrations.tools.race import recommend

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
    if laps:
        yield "Race: 1 query x 50 passages, errors against float32"
        yield from (f"  {line}" for line in (*laps, recommend(laps)))
    yield "Problems"
    yield from (f"  - {problem}" for problem in report.problems)
    if not report.problems:
        yield "  none"
