"""The options that several commands have, each with its one text of help."""

from typing import Annotated

import typer

from bge_rerank_integrations.types import Backend, HeadIndexing, Precision

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, xpu or mps; chosen if left out.")
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1, xpu or mps; chosen if left out, shared if repeated."
    ),
]
Runtime = Annotated[
    Backend, typer.Option(help="torch, or an encoder's ONNX graph on onnx or openvino.")
]
Number = Annotated[Precision, typer.Option(help="Number format of the forward pass.")]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens of query and passage together; 512 if left out.")
]
Prompt = Annotated[str | None, typer.Option(help="An LLM reranker's question.")]
CompressRatio = Annotated[int, typer.Option(help="Average this many passage tokens into one.")]
CompressLayers = Annotated[
    list[int] | None, typer.Option(help="Layer to compress before; may be repeated.")
]
Heads = Annotated[
    HeadIndexing, typer.Option(help="Which head of a lightweight model a layer uses.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit.")]
Cache = Annotated[str | None, typer.Option(metavar="FOLDER", help="The model cache's folder.")]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help="Never download.")]
ServerAddress = Annotated[
    str | None, typer.Option("--url", help="Score on this server, as in http://host:port.")
]
Dialect = Annotated[str, typer.Option(help="The server's protocol; 'auto' asks the server.")]
Deployment = Annotated[str | None, typer.Option(help="Deployment of an Azure endpoint.")]
ConnectTimeout = Annotated[float, typer.Option(help="Seconds to wait for a server's connection.")]
ReadTimeout = Annotated[float, typer.Option(help="Longest silence of a server, in seconds.")]
RequestTimeout = Annotated[float, typer.Option(help="Seconds for a request and its retries.")]
MaxRetries = Annotated[int, typer.Option(help="Retries of a request that a server failed.")]
MaxConcurrency = Annotated[int, typer.Option(help="Most requests to a server at once.")]
