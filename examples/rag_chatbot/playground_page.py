"""The playground's tab: what goes into a reranker, and what comes of it."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from bge_rerank_integrations.base.models import known_models
from bge_rerank_integrations.errors import InvalidInputError, RerankError
from bge_rerank_integrations.types import LongPassages
from rag_chatbot.markup import comparison, messages
from rag_chatbot.playground import (
    LANGCHAIN,
    LLAMA_INDEX,
    Options,
    PlaygroundError,
    as_code,
    as_json,
    rank,
    read_candidates,
)
from rag_chatbot.reading import ENDINGS, UPLOAD, read_files
from rag_chatbot.search import Index

NO_SECOND = "none"
FROM_INDEX = 10
Shown = tuple[str, str, str, str, str]
"""Messages, both orders, JSON, and a program for each framework."""


def build_playground(model: str, index: Index, own_index: gr.State, *, any_model: bool) -> None:
    """The tab's components, inside the tab that is being built."""
    models = list(dict.fromkeys([model, *(spec.id for spec in known_models())]))
    with gr.Row():
        with gr.Column(scale=2):
            query = gr.Textbox(label="Query", elem_id="play-query")
            candidates = gr.Textbox(
                label="Candidates in their first order, one a line or with blank lines between",
                lines=8,
                max_lines=16,
                elem_id="play-candidates",
            )
            with gr.Row():
                take = gr.Button(f"Take the best {FROM_INDEX} of the files", elem_id="play-take")
                upload = gr.UploadButton(
                    "Upload", file_types=list(ENDINGS), file_count="multiple", elem_id="play-upload"
                )
        with gr.Column(scale=1):
            first = gr.Dropdown(
                models,
                value=model,
                label="Reranker",
                allow_custom_value=any_model,
                elem_id="play-model",
            )
            second = gr.Dropdown(
                [NO_SECOND, *models],
                value=NO_SECOND,
                label="Compare with",
                allow_custom_value=any_model,
                elem_id="play-second",
            )
            with gr.Accordion("Options", open=False):
                top_n = gr.Number(None, label="top_n (empty: all)", precision=0)
                threshold = gr.Number(None, label="score_threshold (empty: none)")
                normalize = gr.Checkbox(value=True, label="normalize: show a logit as its sigmoid")
                max_length = gr.Number(
                    None, label="max_length in tokens (empty: the model's)", precision=0
                )
                long_passages = gr.Dropdown(
                    ["cut", "windows", "error"], value="cut", label="long_passages"
                )
            run = gr.Button("Rerank", variant="primary", elem_id="play-run")
    said = gr.HTML(elem_id="play-said")
    orders = gr.HTML(elem_id="play-orders")
    with gr.Accordion("Export", open=False, elem_id="play-export"):
        as_data = gr.Code(
            label="Result as JSON", language="json", max_lines=20, elem_id="play-json"
        )
        llama_index = gr.Code(
            label="LlamaIndex", language="python", max_lines=20, elem_id="play-llama-index"
        )
        langchain = gr.Code(
            label="LangChain", language="python", max_lines=20, elem_id="play-langchain"
        )

    def rerank(  # noqa: PLR0917 - gradio passes values by position
        asked: str,
        pasted: str,
        one: str,
        other: str,
        top_n: int | None,
        threshold: float | None,
        normalize: bool,  # noqa: FBT001
        max_length: int | None,
        long_passages: LongPassages,
    ) -> Shown:
        chosen = [
            Options(name, top_n, threshold, normalize, max_length, long_passages)
            for name in (one, other)
            if name and name != NO_SECOND
        ]
        if not any_model and any(options.model not in models for options in chosen):
            return _refused("Choose a model of the list: this page is open to other machines.")
        return show(asked, pasted, chosen)

    def take_from_index(asked: str, own: Index | None) -> tuple[str, str]:
        if not asked.strip():
            return "", messages(["The query is empty: type what to search for."], kind="error")
        found = (own or index).search(asked, FROM_INDEX)
        wrong = [] if found else ["Nothing in the files has a word of the query."]
        return "\n\n".join(one.passage.text for one in found), messages(wrong, kind="error")

    def read_upload(paths: Sequence[str] | None) -> tuple[str, str]:
        reading = read_files(((Path(path), Path(path).name) for path in paths or ()), UPLOAD)
        text = "\n\n".join(passage.text for passage in reading.passages)
        return text, messages(reading.left_out, kind="error")

    run.click(
        rerank,
        [query, candidates, first, second, top_n, threshold, normalize, max_length, long_passages],
        [said, orders, as_data, llama_index, langchain],
        api_visibility="private",
    )
    take.click(take_from_index, [query, own_index], [candidates, said], api_visibility="private")
    upload.upload(read_upload, [upload], [candidates, said], api_visibility="private")


def show(query: str, pasted: str, chosen: Sequence[Options]) -> Shown:
    """What the tab shows of the candidates reranked with each of the options."""
    if not chosen:
        return _refused("No reranker is chosen: name one.")
    try:
        candidates = read_candidates(pasted)
        rankings = [rank(query, candidates, options) for options in chosen]
    except (PlaygroundError, InvalidInputError, RerankError) as error:
        return _refused(str(error))
    return (
        "",
        comparison(candidates, rankings),
        as_json(query, candidates, rankings),
        as_code(LLAMA_INDEX, query, candidates, chosen[0]),
        as_code(LANGCHAIN, query, candidates, chosen[0]),
    )


def _refused(message: str) -> Shown:
    return messages([message], kind="error"), "", "", "", ""
