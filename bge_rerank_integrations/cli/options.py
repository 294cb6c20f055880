"""The options that several commands have, each with its one text of help."""

from typing import Annotated

import typer

from bge_rerank_integrations.types import HeadIndexing, Precision

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, also on a terminal.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, xpu or mps; chosen if left out.")
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
