"""The playground's tab: the input of a reranker, and its results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from bge_rerank_integrations.base.models import known_models
from bge_rerank_integrations.errors import InvalidInputError, RerankError
from bge_rerank_integrations.types import LongPassages
from rag_chatbot.markup import comparison, messages, waiting
from rag_chatbot.own_files import OwnFiles
from rag_chatbot.playground import (
    LANGCHAIN,
    LLAMA_INDEX,
    Failure,
    Options,
    PlaygroundError,
    Ranking,
    as_code,
    as_json,
    rank,
    read_candidates,
)
from rag_chatbot.reading import ENDINGS, UPLOAD, read_files
from rag_chatbot.search import Index
from rag_chatbot.settings import RerankSettings

NO_SECOND = "none"
FROM_INDEX = 10
EXAMPLE_QUERY = "What do pandas eat?"
EXAMPLE_CANDIDATES = (
    "The panda became the symbol of a nature fund in 1961.",
    "What do people eat in China? Rice, noodles and many vegetables.",
    "Pandas live alone in the mountains of Sichuan and Gansu.",
    "Koalas eat little but the leaves of eucalyptus trees.",
    "A bamboo flute is made from a hollow stem.",
    "The giant panda spends up to 14 hours a day chewing bamboo shoots and leaves.",
)
"""The first example: passages with words of the query, of which one answers."""
EXPORTS: tuple[tuple[str, Literal["json", "python"], str], ...] = (
    ("Result as JSON", "json", "play-json"),
    ("LlamaIndex", "python", "play-llama-index"),
    ("LangChain", "python", "play-langchain"),
)
Shown = tuple[str, str, str, str, str]
"""Messages, both orders, JSON, and a program for each framework."""


def build_playground(
    settings: RerankSettings,
    index: Index,
    *,
    tab: gr.Tab,
    own: gr.State,
    only_mine: gr.Checkbox,
    any_model: bool,
) -> None:
    """The tab's components, inside the tab that is being built."""
    models = list(dict.fromkeys([settings.model, *(spec.id for spec in known_models())]))
    visited = gr.State(value=False)
    with gr.Row():
        with gr.Column(scale=2):
            query = gr.Textbox(EXAMPLE_QUERY, label="Query", elem_id="play-query")
            candidates = gr.Textbox(
                "\n".join(EXAMPLE_CANDIDATES),
                label="Candidates in their first order, one a line or with blank lines between",
                lines=7,
                max_lines=16,
                elem_id="play-candidates",
            )
            with gr.Row(elem_classes="small-buttons"):
                run = gr.Button("Rerank", variant="primary", scale=0, elem_id="play-run")
                take = gr.Button(
                    f"Take the best {FROM_INDEX} of the files", scale=0, elem_id="play-take"
                )
                upload = gr.UploadButton(
                    "Upload candidates",
                    file_types=list(ENDINGS),
                    file_count="multiple",
                    scale=0,
                    elem_id="play-upload",
                )
        with gr.Column(scale=1):
            first = gr.Dropdown(
                models,
                value=settings.model,
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
    said = gr.HTML(elem_id="play-said")
    orders = gr.HTML(elem_id="play-orders")
    with gr.Accordion("Export", open=False, elem_id="play-export"):
        exports = [
            gr.Code(label=label, language=language, max_lines=20, elem_id=name)
            for label, language, name in EXPORTS
        ]

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
    ) -> Iterator[Shown]:
        rerankers = [
            Options(name, top_n, threshold, normalize, max_length, long_passages)
            for name in (one, other)
            if name and name != NO_SECOND
        ]
        if not any_model and any(options.model not in models for options in rerankers):
            yield _refused("Choose a model of the list: this page is open to other machines.")
            return
        names = " and ".join(options.model for options in rerankers)
        yield waiting(f"Reranking with {names} …"), "", "", "", ""
        yield show(asked, pasted, rerankers, relevant_from=settings.min_score)

    def rerank_at_first(been_here: bool, *values: Any) -> Iterator[Any]:  # noqa: FBT001
        if been_here:
            yield (gr.skip(),) * (1 + len(shown))
            return
        for step in rerank(*values):
            yield True, *step

    def take_from_index(asked: str, own: OwnFiles | None, only_mine: bool) -> tuple[str, str]:  # noqa: FBT001
        if not asked.strip():
            return "", messages(["The query is empty: type what to search for."], kind="error")
        searched = index if own is None else own.mine if only_mine else own.both
        found = searched.search(asked, FROM_INDEX)
        wrong = [] if found else ["Nothing in the files has a word of the query."]
        return "\n\n".join(one.passage.text for one in found), messages(wrong, kind="error")

    def read_upload(paths: Sequence[str] | None) -> tuple[str, str]:
        reading = read_files(((Path(path), Path(path).name) for path in paths or ()), UPLOAD)
        text = "\n\n".join(passage.text for passage in reading.passages)
        return text, messages(reading.left_out, kind="error")

    chosen = [first, second, top_n, threshold, normalize, max_length, long_passages]
    shown = [said, orders, *exports]
    gr.on(
        [run.click, query.submit],
        rerank,
        [query, candidates, *chosen],
        shown,
        api_visibility="private",
    )
    tab.select(
        rerank_at_first,
        [visited, query, candidates, *chosen],
        [visited, *shown],
        api_visibility="private",
    )
    take.click(
        take_from_index, [query, own, only_mine], [candidates, said], api_visibility="private"
    )
    upload.upload(read_upload, [upload], [candidates, said], api_visibility="private")


def show(
    query: str, pasted: str, chosen: Sequence[Options], *, relevant_from: float = 0.1
) -> Shown:
    """The tab's content: the candidates, reranked with each of the options.

    A reranker that fails leaves the other's result. Evidence is marked in candidates whose score
    is at least `relevant_from`.
    """
    if not chosen:
        return _refused("No reranker is chosen: name one.")
    try:
        candidates = read_candidates(pasted)
    except PlaygroundError as error:
        return _refused(str(error))
    outcomes: list[Ranking | Failure] = []
    for options in chosen:
        try:
            outcomes.append(rank(query, candidates, options))
        except PlaygroundError as error:
            return _refused(str(error))
        except (InvalidInputError, RerankError) as error:
            outcomes.append(Failure(options.model, str(error)))
    rankings = [outcome for outcome in outcomes if isinstance(outcome, Ranking)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not rankings:
        return messages([failure.message for failure in failures], kind="error"), "", "", "", ""
    return (
        messages((f"{failure.model} failed." for failure in failures), kind="error"),
        comparison(candidates, outcomes, relevant_from=relevant_from),
        as_json(query, candidates, rankings),
        as_code(LLAMA_INDEX, query, candidates, rankings[0].options),
        as_code(LANGCHAIN, query, candidates, rankings[0].options),
    )


def _refused(message: str) -> Shown:
    return messages([message], kind="error"), "", "", "", ""
