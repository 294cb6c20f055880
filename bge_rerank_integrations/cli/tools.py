"""The commands that check or convert a model: `doctor`, `verify` and `export`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.errors import InvalidInputError
from bge_rerank_integrations.options import DeviceOptions, HubOptions, ScorerOptions
from bge_rerank_integrations.types import GraphFormat

if TYPE_CHECKING:
    from bge_rerank_integrations.tools.doctor import Report
    from bge_rerank_integrations.tools.race import Lap


@option.with_flags
def doctor(
    *,
    as_json: option.AsJson = False,
    model: Annotated[
        str | None, typer.Option(help="Model to test; by default one that needs no download.")
    ] = None,
    race: Annotated[
        bool, typer.Option("--race", help="Time every backend and precision of --model.")
    ] = False,
    options: Annotated[DeviceOptions, option.Only("device", "precision")],
) -> None:
    """Check this installation and test that it scores.

    Prints the installed packages, where a model would run and why, and problems with their
    remedies. Exits with 1 if the self-test fails.

    With --race the model is timed on torch, ONNX Runtime and OpenVINO in every number format that
    this machine supports, with errors against float32. Graphs are written to a temporary folder,
    which takes five bytes per weight.
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
        typer.Option(
            help="Allowed difference of a raw score; by default 2e-5, or 0.05 in half precision."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write a JSON report to attach to an issue."),
    ] = None,
) -> None:
    """Compare the scores of MODEL with reference libraries.

    Fixed pairs are scored here and, one at a time, by transformers, sentence-transformers and
    FlagEmbedding, and compared with the scores that the model's card publishes. With --url the
    scores of a server are compared. Exits with 1 if a score is wrong.
    """
    from bge_rerank_integrations.tools.verify import verify as compare

    given = options.given()
    url = given.pop("base_url", None)
    found = compare(model, base_url=url, tolerance=tolerance, **given)
    print(found)
    if report is not None:
        found.save(report)
    if found.verdict == "wrong":
        raise typer.Exit(1)


@option.with_flags
def export(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a BERT or XLM-R encoder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    dtype: Annotated[GraphFormat, typer.Option(help="Number format of the matrices.")] = "fp32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")
    ] = False,
    as_json: option.AsJson = False,
    hub: HubOptions,
) -> None:
    """Write MODEL to the folder OUT as an ONNX graph.

    Use it with --backend onnx or openvino. The graph's scores of fixed pairs are compared with
    torch's: the largest difference of raw scores is printed and, for int8, Kendall's tau, which is
    1 if all orders agree.

    A private model needs HF_TOKEN in the environment.
    """
    from bge_rerank_integrations.tools.export import export_onnx

    done = export_onnx(model, out, dtype=dtype, overwrite=overwrite, **hub.given())
    if as_json:
        print(json.dumps({"format": "onnx", **asdict(done), "folder": str(done.folder)}))
        return
    print(f"{done.folder}: onnx, {done.dtype}, {done.size / 1e6:.1f} MB")
    line = f"largest {done.scale} difference to torch in float32: {done.difference:.1e}"
    if done.dtype == "int8":
        line += f"; Kendall tau {done.tau:.3f}"
    print(f"{line} ({done.pairs} fixed pairs)")
