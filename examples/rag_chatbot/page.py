"""The web page: a chat over the files, and the playground in a tab of its own."""

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI

from bge_rerank_integrations.errors import RerankError
from rag_chatbot.answers import AnswerFailed, Turn
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.markup import CSS, conversation, messages, sources
from rag_chatbot.origin import guards
from rag_chatbot.playground_page import build_playground
from rag_chatbot.reading import ENDINGS, UPLOAD, read_files
from rag_chatbot.search import Index

LONGEST_QUESTION = 2000
FIRST_PORT = 7860
MOST_PASSAGES = 20_000
FRAMEWORKS = {"llama-index": "LlamaIndex", "langchain": "LangChain"}


def build_page(chatbot: Chatbot, index: Index, *, any_model: bool) -> gr.Blocks:
    """The page, not yet served. With `any_model` the playground takes any model's name."""
    page: gr.Blocks
    with gr.Blocks(
        title="BGE reranker chat",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 3600),
    ) as page:
        with gr.Tab("Chat"):
            own_index = gr.State(None, time_to_live=3600)
            _build_chat(chatbot, index, own_index)
        with gr.Tab("Playground"):
            build_playground(chatbot.settings.model, index, own_index, any_model=any_model)
    return page


def build_app(page: gr.Blocks, *, host: str, loopback: bool) -> FastAPI:
    """The page as an application that answers its own pages alone; see origin.py."""
    app = FastAPI(
        middleware=guards(host, loopback=loopback), docs_url=None, redoc_url=None, openapi_url=None
    )
    gr.mount_gradio_app(
        app,
        page.queue(max_size=20, default_concurrency_limit=2),
        path="/",
        max_file_size=UPLOAD.bytes,
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
    )
    return app


def serve(app: FastAPI, *, host: str, port: int | None) -> None:
    """Serve until interrupted; without a port, on the first that is free from 7860.

    Raises `OSError` if there is none.
    """
    listening = _listen(host, [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100))
    shown = f"[{host}]" if ":" in host else host
    print(f"Open http://{shown}:{listening.getsockname()[1]}/", flush=True)
    # an open page holds a connection for ever
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, ports: Sequence[int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        try:
            return socket.create_server((host, port), family=family)
        except OSError:
            if port == ports[-1]:
                raise
    raise ValueError("there is no port to try")


def describe(chatbot: Chatbot, index: Index) -> str:
    """One line on what answers here."""
    writer = "no language model: answers are sentences of the files, word for word"
    if chatbot.llm is not None:
        writer = f"answers by {chatbot.llm.model} at {chatbot.llm.url}"
    return (
        f"{len(index.passages)} passages · reranker {chatbot.settings.model} · "
        f"{FRAMEWORKS[chatbot.framework]} · {writer}"
    )


def _build_chat(chatbot: Chatbot, index: Index, own_index: gr.State) -> None:
    turns = gr.State([], time_to_live=3600)
    about = gr.HTML(messages([describe(chatbot, index)], kind="about"))
    with gr.Row():
        with gr.Column(scale=3):
            # not gr.Chatbot: it makes images of what is typed, whatever it is told of markup
            said = gr.HTML(
                conversation(()), max_height=480, autoscroll=True, elem_id="conversation"
            )
            question = gr.Textbox(
                label="Question",
                placeholder="Ask in English or Chinese",
                max_length=LONGEST_QUESTION,
                elem_id="question",
            )
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                clear = gr.Button("New conversation", elem_id="clear")
            with gr.Accordion("Your files", open=False, elem_id="files"):
                upload = gr.File(
                    label=f"Text, Markdown or PDF: {UPLOAD.files} files of {UPLOAD.megabytes} MB",
                    file_count="multiple",
                    file_types=list(ENDINGS),
                    height=140,
                    elem_id="upload",
                )
                report = gr.HTML(elem_id="report")
        with gr.Column(scale=2):
            notes = gr.HTML(elem_id="notes")
            cited = gr.HTML(elem_id="sources")

    def answer(
        asked: str, before: list[Turn], own: Index | None
    ) -> Iterator[tuple[str, list[Turn], str, str, str]]:
        yield from stream(chatbot, own or index, asked, before)

    def add(paths: Sequence[str] | None, own: Index | None) -> tuple[Index | None, str, str]:
        return add_files(paths or (), own or index, lambda one: describe(chatbot, one))

    streamed: Any = {
        "fn": answer,
        "inputs": [question, turns, own_index],
        "outputs": [said, turns, question, notes, cited],
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    ask.click(**streamed)
    question.submit(**streamed)
    clear.click(
        lambda: (conversation(()), [], "", "", ""),
        outputs=streamed["outputs"],
        api_visibility="private",
    )
    upload.upload(
        add,
        inputs=[upload, own_index],
        outputs=[own_index, about, report],
        api_visibility="private",
    )


def stream(
    chatbot: Chatbot, index: Index, question: str, before: Sequence[Turn]
) -> Iterator[tuple[str, list[Turn], str, str, str]]:
    """Conversation, turns to remember, question box, notes and sources, as they grow."""
    question = question.strip()
    if not question or len(question) > LONGEST_QUESTION:
        wrong = "The question is empty: type one."
        if question:
            wrong = f"The question has more than {LONGEST_QUESTION} characters: ask a shorter one."
        yield conversation(before), [*before], question, messages([wrong], kind="error"), ""
        return
    asked: list[Turn] = [*before, {"role": "user", "content": question}]
    yield conversation(asked), [*before], "", "", ""
    try:
        for answer in chatbot.ask(question, before, index):
            turns: list[Turn] = [*asked, {"role": "assistant", "content": answer.text}]
            yield conversation(turns), turns, "", messages(answer.notes), sources(answer.sources)
    except (AnswerFailed, RerankError) as error:
        found = error.sources if isinstance(error, AnswerFailed) else ()
        wrong = messages([str(error)], kind="error")
        yield conversation(asked), [*before], question, wrong, sources(found)


def add_files(paths: Sequence[str], index: Index, about: Any) -> tuple[Index | None, str, str]:
    """The index with the files, a line about it, and a report on each that was left out."""
    reading = read_files(((Path(path), Path(path).name) for path in paths), UPLOAD)
    added, left_out = len(reading.passages), list(reading.left_out)
    if len(index.passages) + added > MOST_PASSAGES:
        left_out.append(f"Nothing was added: {MOST_PASSAGES} passages are the most.")
        added = 0
    if added:
        index = index.with_passages(reading.passages)
    report = messages([f"{added} passages were added."] if added else [], kind="about")
    report += messages(left_out, kind="error")
    return index, messages([about(index)], kind="about"), report
