"""`bge-rerank export`: a model as a folder for ONNX Runtime and OpenVINO."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from bge_rerank_integrations.cli import options as option
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.types import GraphFormat


@option.with_flags
def export(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a BERT or XLM-R encoder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    target: Annotated[
        Literal["onnx"], typer.Option("--format", help="What to write: an ONNX graph.")
    ] = "onnx",
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
    done = export_onnx(
        model,
        out,
        dtype=dtype,
        overwrite=overwrite,
        **hub.given(),
    )
    if as_json:
        print(json.dumps({"format": target, **asdict(done), "folder": str(done.folder)}))
        return
    print(f"{done.folder}: {target}, {done.dtype}, {done.size / 1e6:.1f} MB")
    said = f"largest {done.scale} difference to torch in float32: {done.difference:.1e}"
    if done.dtype == "int8":
        said += f"; Kendall tau {done.tau:.3f}"
    print(f"{said} ({done.pairs} fixed pairs)")
