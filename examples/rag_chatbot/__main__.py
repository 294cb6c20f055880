"""The command line: which files, framework, reranker and language model."""

import argparse
import sys
from ipaddress import ip_address
from pathlib import Path

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.errors import RerankError
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.reading import UnreadableFile, read_folder, read_shipped
from rag_chatbot.search import Embedder, Index
from rag_chatbot.settings import RerankSettings, SettingsError, read_language_model


def parser() -> argparse.ArgumentParser:
    """The options, with their defaults."""
    options = argparse.ArgumentParser(
        prog="rag_chatbot", description="A chat over your files, and a playground for rerankers."
    )
    options.add_argument("--files", type=Path, help="a folder of text, Markdown and PDF files")
    options.add_argument("--framework", choices=["llama-index", "langchain"], default="llama-index")
    options.add_argument("--model", default="offline", help="reranker: hub id, folder or 'offline'")
    options.add_argument(
        "--embedder", default="offline-embedder", help="for the first stage; 'none' is BM25 alone"
    )
    options.add_argument("--top-n", type=int, default=3, help="maximum passages to answer from")
    options.add_argument(
        "--min-score", type=float, default=0.1, help="minimum score of a relevant passage"
    )
    options.add_argument("--llm-url", help="an OpenAI-compatible address, else OPENAI_BASE_URL")
    options.add_argument("--llm-model", help="the language model there, else OPENAI_MODEL")
    options.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options.add_argument("--port", type=int, help="by default the first free one from 7860")
    return options


def main() -> None:
    """Read the files, load the models, serve the page."""
    options = parser().parse_args()
    try:
        llm = read_language_model(options.llm_url, options.llm_model)
        settings = RerankSettings(options.model, top_n=options.top_n, min_score=options.min_score)
        chatbot = Chatbot(options.framework, settings, llm=llm)
        print(f"Reranker: {options.model}", flush=True)
        chatbot.warm_up()
        index = read_index(options.files, options.embedder)
    except (RerankError, SettingsError, UnreadableFile) as error:
        sys.exit(f"rag_chatbot: {error}")
    from rag_chatbot.page import EXAMPLES, build_app, build_page, serve

    here_alone = options.host == "localhost" or is_loopback(options.host)
    if not here_alone:
        print(f"Anyone who can reach {options.host} can read these files and use the models.")
    examples = EXAMPLES if options.files is None else ()
    page = build_page(chatbot, index, any_model=here_alone, examples=examples)
    try:
        app = build_app(page, host=options.host, loopback=here_alone)
        serve(app, host=options.host, port=options.port)
    except OSError as error:
        sys.exit(f"rag_chatbot: cannot listen on {options.host}: {error}; choose another --port")


def read_index(files: Path | None, embedder: str) -> Index:
    """The user's files, else the shipped ones, ready to be searched."""
    if files is None:
        passages = read_shipped()
    else:
        reading = read_folder(files)
        passages = list(reading.passages)
        for left_out in reading.left_out:
            print(left_out)
    print(f"Embedding {len(passages)} passages with {embedder} ...", flush=True)
    if embedder == "none":
        return Index(passages)
    scorer = load_scorer(embedder)
    if not isinstance(scorer, Embedder) or scorer.scale != "cosine":
        raise SettingsError(f"{embedder} is not an embedder; --embedder none does without one")
    return Index(passages, embedder=scorer, embedder_name=embedder)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name is not looked up."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
