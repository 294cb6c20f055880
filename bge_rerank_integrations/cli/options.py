"""The options that several commands have, each with its one text of help."""

from typing import Annotated

import typer

from bge_rerank_integrations.types import Backend, HeadIndexing, Precision, SpecialTokens

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
ShowProgress = Annotated[
    bool | None,
    typer.Option(
        "--show-progress/--no-progress", help="By default if the errors go to a terminal."
    ),
]
Normalize = Annotated[bool, typer.Option(help="Show a logit as its sigmoid, between 0 and 1.")]
Model = Annotated[str, typer.Option(help="Hub id, folder or 'offline'.")]
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
QueryMaxLength = Annotated[
    int | None, typer.Option(help="Tokens of the query; 3/4 of --max-length if left out.")
]
QueryInstruction = Annotated[str | None, typer.Option(help="Text put before the query.")]
PassageInstruction = Annotated[str | None, typer.Option(help="Text put before each passage.")]
ControlTokens = Annotated[
    SpecialTokens, typer.Option(help="What a control token such as </s> in a text is.")
]
Prompt = Annotated[str | None, typer.Option(help="An LLM reranker's question.")]
CutoffLayers = Annotated[
    list[int] | None, typer.Option(help="Layer to score at; the last if left out.")
]
CompressRatio = Annotated[int, typer.Option(help="Average this many passage tokens into one.")]
CompressLayers = Annotated[
    list[int] | None, typer.Option(help="Layer to compress before; may be repeated.")
]
Heads = Annotated[
    HeadIndexing, typer.Option(help="Which head of a lightweight model a layer uses.")
]
BatchSize = Annotated[int | None, typer.Option(help="Most pairs in a batch.")]
MaxBatchTokens = Annotated[int | None, typer.Option(help="Most tokens in a batch.")]
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
