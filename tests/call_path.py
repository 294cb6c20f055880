"""Print the frames of the package between LlamaIndex's call and the forward pass, as JSON lines.

Run as a process of its own, so that every thread is seen. A line is a stack, outermost first, each
frame as "file qualified.name": where the call waits for its worker thread, and in that thread
where the tokenizer encodes and where the encoder attends and multiplies.
"""

import json
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import bge_rerank_integrations

PACKAGE = Path(bge_rerank_integrations.__file__).parent
LEAVES = {
    "off_main_thread",
    "TextTokenizer.encode",
    "RunAttention.__call__",
    "Linear.__call__",
}
stacks: dict[str, None] = {}
watching = False


def watch(frame: FrameType, event: str, _argument: Any) -> None:
    if watching and event == "call" and frame.f_code.co_qualname in LEAVES:
        names: list[str] = []
        above: FrameType | None = frame
        while above is not None:
            file = Path(above.f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                place = file.relative_to(PACKAGE).as_posix()
                names.append(f"{place} {above.f_code.co_qualname}")
            above = above.f_back
        stacks[json.dumps(names[::-1])] = None


def main(folder: Path) -> None:
    global watching
    threading.setprofile(watch)
    from llama_index.core.schema import NodeWithScore, TextNode

    from bge_rerank_integrations.llama_index import BGERerank
    from tests import tiny_models

    reranker = BGERerank(model=str(tiny_models.build_reranker_base(folder)), device="cpu")
    reranker.warm_up()
    texts = ("a fox eats mice", "the sun is far", "mice")
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    sys.setprofile(watch)
    watching = True
    reranker.postprocess_nodes(nodes, query_str="what does a fox eat")
    watching = False
    sys.setprofile(None)
    sys.stdout.write("".join(f"{stack}\n" for stack in stacks))


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary))
