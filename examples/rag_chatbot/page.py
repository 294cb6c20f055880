"""The web page: a chat over the files, and the playground in a tab of its own."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI

from bge_rerank_integrations.errors import RerankError
from rag_chatbot.answers import AnswerFailed, Turn
from rag_chatbot.chatbot import Chatbot
from rag_chatbot.look import CSS, THEME
from rag_chatbot.markup import conversation, header, messages, sources
from rag_chatbot.origin import guards
from rag_chatbot.own_files import OwnFiles, change_files
from rag_chatbot.playground_page import build_playground
from rag_chatbot.reading import ENDINGS, UPLOAD
from rag_chatbot.search import Index

LONGEST_QUESTION = 2000
FIRST_PORT = 7860
FRAMEWORKS = {"llama-index": "LlamaIndex", "langchain": "LangChain"}
EXAMPLES = (
    "Who coined the word oxygen?",
    "What was Warsaw's population in 1901?",
    "大熊猫吃什么？",  # noqa: RUF001 - a Chinese question mark
    "长城有多长？",  # noqa: RUF001
)
"""Questions that the shipped texts answer."""

# These run in the browser. `asked` is the question that is being answered: until then, another one
# is not taken and stays in its box.
TAKE_TYPED = "(typed, asked) => asked ? [asked, typed] : [typed || ' ', '']"
TAKE_EXAMPLE = "(typed, asked) => [asked || {question}, typed]"
GIVE_BACK = "(unanswered, typed) => ['', typed || unanswered]"


def build_page(
    chatbot: Chatbot, index: Index, *, any_model: bool, examples: Sequence[str] = ()
) -> gr.Blocks:
    """The page, not yet served, with questions to click.

    With `any_model` the playground takes any model's name.
    """
    page: gr.Blocks
    with gr.Blocks(
        title="BGE reranker chat",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 3600),
    ) as page:
        about = gr.HTML(header(describe(chatbot, index)), elem_id="about")
        own = gr.State(None, time_to_live=3600)
        only_mine = gr.Checkbox(
            label="Search only my files", interactive=False, render=False, elem_id="only-mine"
        )
        with gr.Tab("Chat"):
            _build_chat(chatbot, index, about, own, only_mine, examples=examples)
        with gr.Tab("Playground") as tab:
            build_playground(
                chatbot.settings, index, tab=tab, own=own, only_mine=only_mine, any_model=any_model
            )
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
        theme=THEME,
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
    )
    # as launch() does: without it, gradio reads any file that a request names as an upload
    page.has_launched = True
    return app


def serve(app: FastAPI, *, host: str, port: int | None) -> None:
    """Serve until interrupted; without a port, on the first that is free from 7860.

    Raises `OSError` if there is none.
    """
    listening = _listen(host, [port] if port is not None else range(FIRST_PORT, FIRST_PORT + 100))
    shown = f"[{host}]" if ":" in host else host
    print(f"Open http://{shown}:{listening.getsockname()[1]}/", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    # Ctrl-C ends the process at once: an open page holds its connection forever
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with suppress(KeyboardInterrupt):
        thread.join()


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
    """One line that says which models answer."""
    writer = "no language model: answers are sentences of the files, word for word"
    if chatbot.llm is not None:
        writer = f"answers by {chatbot.llm.model} at {chatbot.llm.url}"
    return (
        f"{len(index.passages)} passages · reranker {chatbot.settings.model} · "
        f"{FRAMEWORKS[chatbot.framework]} · {writer}"
    )


def _build_chat(
    chatbot: Chatbot,
    index: Index,
    about: gr.HTML,
    own: gr.State,
    only_mine: gr.Checkbox,
    *,
    examples: Sequence[str],
) -> None:
    turns = gr.State([], time_to_live=3600)
    asked, unanswered = (
        gr.Textbox(visible="hidden", elem_id=name) for name in ("asked", "unanswered")
    )
    with gr.Row():
        with gr.Column(scale=3):
            # not gr.Chatbot: it turns typed markup into images, whatever its settings
            said = gr.HTML(
                conversation(()), max_height=480, autoscroll=True, elem_id="conversation"
            )
            with gr.Row(equal_height=True, elem_classes="ask-row"):
                question = gr.Textbox(
                    label="Your question",
                    placeholder="Ask in English or Chinese",
                    max_length=LONGEST_QUESTION,
                    autofocus=True,
                    elem_id="question",
                )
                ask = gr.Button("Ask", variant="primary", scale=0, min_width=90, elem_id="ask")
            with gr.Row(elem_classes="small-buttons", elem_id="examples"):
                chips = [
                    gr.Button(text, size="sm", scale=0, min_width=0, elem_classes="example")
                    for text in examples
                ]
                clear = gr.Button(
                    "New conversation", size="sm", scale=0, min_width=0, elem_id="clear"
                )
            with gr.Accordion("Your files", open=False, elem_id="files"):
                upload = gr.File(
                    label=f"Text, Markdown or PDF: {UPLOAD.files} files of {UPLOAD.megabytes} MB",
                    file_count="multiple",
                    file_types=list(ENDINGS),
                    height=160,
                    elem_id="upload",
                )
                report = gr.HTML(elem_id="report")
                only_mine.render()  # type: ignore[no-untyped-call]
        with gr.Column(scale=2):
            notes = gr.HTML(elem_id="notes")
            cited = gr.HTML(elem_id="sources")

    streamed = [said, turns, unanswered, notes, cited]

    def answer(
        question: str,
        before: list[Turn],
        own: OwnFiles | None,
        only_mine: bool,  # noqa: FBT001
    ) -> Iterator[Any]:
        if not question:  # the one before is answered
            yield (gr.skip(),) * len(streamed)
            return
        yield from stream(chatbot, searched(index, own, only_mine=only_mine), question, before)

    def change(
        paths: Sequence[str] | None,
        before: OwnFiles | None,
        progress: Any = gr.Progress(),  # noqa: B008 - gradio finds it by this default
    ) -> tuple[Any, ...]:
        progress(0, desc="Reading the files")
        changed = change_files(
            paths or (),
            before,
            index,
            progress=lambda done, total: progress(
                done / total, desc=f"Embedding {done} of {total} passages"
            ),
        )
        report = messages(changed.done, kind="about") + messages(changed.wrong, kind="error")
        line = header(describe(chatbot, searched(index, changed.own, only_mine=False)))
        if changed.own is None:
            return None, None, report, line, gr.Checkbox(value=False, interactive=False)
        return changed.own, list(changed.own.files), report, line, gr.Checkbox(interactive=True)

    gr.on(
        [ask.click, question.submit],
        None,
        [question, asked],
        [asked, question],
        js=TAKE_TYPED,
        api_visibility="private",
    )
    for chip in chips:
        chip.click(
            None,
            [question, asked],
            [asked, question],
            js=TAKE_EXAMPLE.format(question=json.dumps(str(chip.value))),
            api_visibility="private",
        )
    answering = asked.change(
        answer,
        [asked, turns, own, only_mine],
        streamed,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    answering.then(
        None, [unanswered, question], [asked, question], js=GIVE_BACK, api_visibility="private"
    )
    clear.click(
        lambda: (conversation(()), [], "", "", "", ""),
        outputs=[*streamed, asked],
        cancels=[answering],
        api_visibility="private",
    )
    gr.on(
        [upload.upload, upload.delete, upload.clear],
        change,
        [upload, own],
        [own, upload, report, about, only_mine],
        show_progress_on=[report],
        api_visibility="private",
    )


def searched(index: Index, own: OwnFiles | None, *, only_mine: bool) -> Index:
    """The index that a question is searched in."""
    if own is None:
        return index
    return own.mine if only_mine else own.both


def stream(
    chatbot: Chatbot, index: Index, question: str, before: Sequence[Turn]
) -> Iterator[tuple[str, list[Turn], str, str, str]]:
    """Conversation, turns to remember, unanswered question, notes and sources, as they grow."""
    question = question.strip()
    if not question or len(question) > LONGEST_QUESTION:
        wrong = "The question is empty: type one."
        if question:
            wrong = f"The question has more than {LONGEST_QUESTION} characters: ask a shorter one."
        yield conversation(before), [*before], question, messages([wrong], kind="error"), ""
        return
    asked: list[Turn] = [*before, {"role": "user", "content": question}]
    yield conversation(asked, waiting="Searching and reranking …"), [*before], "", "", ""
    try:
        for answer in chatbot.ask(question, before, index):
            turns: list[Turn] = [*asked, {"role": "assistant", "content": answer.text}]
            shown = conversation(turns, sources=[source.number for source in answer.sources])
            yield shown, turns, "", messages(answer.notes), sources(answer.sources)
    except (AnswerFailed, RerankError) as error:
        found = error.sources if isinstance(error, AnswerFailed) else ()
        wrong = messages([str(error)], kind="error")
        yield conversation(asked), [*before], question, wrong, sources(found)
