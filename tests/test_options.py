"""Options are declared once: functions, adapters and commands have and refuse the same."""

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_instrumentation import get_dispatcher

from bge_rerank_integrations import InvalidInputError, load_reranker, load_scorer
from bge_rerank_integrations import Reranker as PlainReranker
from bge_rerank_integrations.base import trace
from bge_rerank_integrations.base.option_group import OTHER_NAMES, expected
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.langchain import BGERerank as Compressor
from bge_rerank_integrations.llama_index import BGERerank as Postprocessor
from bge_rerank_integrations.options import (
    INAPPLICABLE,
    RankingOptions,
    ScorerOptions,
    WrapperOptions,
)
from tests.fakes import WordOverlapScorer

ADAPTERS = [Compressor, Postprocessor, BGECrossEncoder]
GIVEN: dict[str, Any] = {
    "model": "offline",
    "base_url": "http://localhost:1",
    "backend": "onnx",
    "device": "cuda",
    "precision": "bf16",
    "query_instruction": "Q: ",
    "passage_instruction": "P: ",
    "max_length": 77,
    "special_tokens": "error",
    "truncation": "longest_first",
    "cutoff_layers": (8,),
    "batch_size": 3,
    "cache_dir": "models",
    "token": "hf_secret",
    "api_key": "hf_secret",
    "long_passages": "windows",
    "score_cache": ":memory:",
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", GIVEN)
def test_an_option_beside_a_scorer_is_refused_by_name(adapter: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} (has no effect with scorer=|is for a)") as told:
        adapter(scorer=WordOverlapScorer(), **{name: GIVEN[name]})
    assert "hf_secret" not in str(told.value)


def test_functions_and_adapters_have_the_same_options_with_the_same_defaults() -> None:
    functions = inspect.signature(load_reranker).parameters
    for group in (ScorerOptions, WrapperOptions, RankingOptions):
        for name, field in group.model_fields.items():
            assert field.description, name
            assert functions[name].default == field.default, name
            for adapter in (Compressor, Postprocessor):
                assert name == "top_n" or adapter.model_fields[name].default == field.default
                assert adapter.model_fields[name].description == field.description
    scorer = inspect.signature(load_scorer).parameters
    assert list(scorer) == ["model", *ScorerOptions.model_fields]
    assert set(inspect.signature(PlainReranker).parameters) > set(RankingOptions.model_fields)


@pytest.mark.parametrize(
    ("function", "misspelt", "nearest"),
    [
        (load_reranker, "top_k", "top_n"),
        (load_reranker, "topn", "top_n"),
        (load_reranker, "threshold", "score_threshold"),
        (load_reranker, "min_score", "score_threshold"),
        (load_scorer, "max_lenght", "max_length"),
        (load_scorer, "dtype", "precision"),
    ],
)
def test_a_misspelt_option_names_the_function_and_the_nearest_option(
    function: Any, misspelt: str, nearest: str
) -> None:
    said = f"^{function.__name__} has no option '{misspelt}'; did you mean {nearest}\\?$"
    with pytest.raises(InvalidInputError, match=said):
        function("offline", **{misspelt: 3})


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_model_without_its_name_is_explained(adapter: Any) -> None:
    said = f"^{adapter.__name__} takes its options by name: model='offline'$"
    with pytest.raises(InvalidInputError, match=said):
        adapter("offline")


@pytest.mark.parametrize(("misspelt", "nearest"), [("top_k", "top_n"), ("topn", "top_n")])
async def test_a_misspelt_option_of_a_call_is_refused(misspelt: str, nearest: str) -> None:
    reranker, options = PlainReranker(WordOverlapScorer()), {misspelt: 1}
    said = f"^rerank has no option '{misspelt}'; did you mean {nearest}\\?$"
    with pytest.raises(InvalidInputError, match=said):
        reranker.rerank("red fox", ["a dog", "red fox"], **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=said):
        await reranker.arerank("red fox", ["a dog", "red fox"], **options)  # type: ignore[arg-type]


def test_so_do_the_adapters_and_the_reranker() -> None:
    with pytest.raises(ValueError, match=r"BGECrossEncoder has no option 'url'; did you mean base"):
        BGECrossEncoder(url="http://h")  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match=r"^Reranker has no option 'top_k'; did you mean t"):
        PlainReranker(WordOverlapScorer(), top_k=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidInputError, match=r"^Reranker has no option 'zzz'$"):
        PlainReranker(WordOverlapScorer(), zzz=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [True, "3", 3.0, 0, np.float32(3)])
def test_a_whole_number_is_one_in_functions_and_adapters(wrong: Any) -> None:
    said = r"max_length is .*; it must be a whole number from 1, or None"
    with pytest.raises(InvalidInputError, match=said):
        load_scorer("offline", max_length=wrong)
    with pytest.raises(ValueError, match=said):
        Compressor(max_length=wrong)
    length: Any = np.int64(300)
    assert type(Compressor(max_length=length).max_length) is int


def test_a_wrong_secret_is_shown_nowhere() -> None:
    wrong: Any = ["hf_secret"]
    with pytest.raises(InvalidInputError, match=r"^token is of type list; it must be text, or No"):
        load_scorer("offline", token=wrong)


def test_the_table_of_inapplicable_options_names_options() -> None:
    known = {"model", *ScorerOptions.model_fields, *WrapperOptions.model_fields}
    for rules in INAPPLICABLE.values():
        for names, _ in rules:
            assert set(names) <= known
    assert set(OTHER_NAMES.values()) <= known | set(RankingOptions.model_fields)
    assert expected(RankingOptions.model_fields["on_error"]) == "'raise' or 'keep'"


if TYPE_CHECKING:  # mypy reports an unused ignore if it does not refuse the options below
    load_scorer("offline", max_length=300).count_tokens(["a"])
    load_scorer("m", device=["cuda:0", "cuda:1"], cutoff_layers=[8]).count_tokens(["a"])
    load_scorer("m", base_url="http://h", api_key="k").probe()
    load_reranker("m", top_n=None, precision="bf16", min_probability=0.5)
    Compressor(token="t", device=["cuda:0", "cuda:1"], top_n=2)
    load_scorer("m", max_lenght=3)  # type: ignore[call-overload]
    load_scorer("m", max_length="3")  # type: ignore[call-overload]
    load_reranker("m", precision="fp99")  # type: ignore[arg-type]
    PlainReranker(load_scorer("m"), topn=3)  # type: ignore[call-arg]
    Compressor(top_n="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", [Compressor, Postprocessor])
def test_a_reranker_is_built_once_for_its_settings(adapter: Any) -> None:
    made = adapter(scorer=WordOverlapScorer())
    reranker = made.reranker()
    assert made.reranker() is reranker
    made.score_threshold = 0.5
    assert made.reranker() is not reranker
    assert made.reranker().options.score_threshold == 0.5


class Listener(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012  # pydantic copies it

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.names.append(event.class_name())


class CustomEvents(BaseCallbackHandler):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.names.append(name)


class NotingScorer(WordOverlapScorer):
    """Remembers whether a trace was recorded while it scored."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[bool] = []

    def score(self, pairs: Any) -> Any:
        self.recorded.append(trace._recorder.get() is not None)
        return super().score(pairs)


def test_a_trace_is_recorded_only_where_somebody_listens() -> None:
    # without spans, because another test of this process may have set up a tracer
    scorer = NotingScorer()
    nodes = [NodeWithScore(node=TextNode(text="red fox"))]
    Postprocessor(scorer=scorer, otel_span=False).postprocess_nodes(nodes, query_str="fox")
    root, listener = get_dispatcher(), Listener()
    root.add_event_handler(listener)
    try:
        Postprocessor(scorer=scorer, otel_span=False).postprocess_nodes(nodes, query_str="fox")
    finally:
        root.event_handlers.remove(listener)
    assert "BGERerankTraceEvent" in listener.names
    documents, handler = [Document(page_content="red fox")], CustomEvents()
    Compressor(scorer=scorer, otel_span=False).compress_documents(documents, "fox")
    Compressor(scorer=scorer, otel_span=False).compress_documents(
        documents, "fox", callbacks=[handler]
    )
    assert handler.names == ["bge_rerank_trace"]
    assert scorer.recorded == [False, True, False, True]


def test_texts_without_words_are_treated_alike_in_both_frameworks() -> None:
    texts = ["", "a dog", "red fox"]
    for no_text, kept in (("last", ["red fox", "a dog", ""]), ("drop", ["red fox", "a dog"])):
        options: dict[str, Any] = {"top_n": None, "no_text": no_text}
        nodes = Postprocessor(scorer=WordOverlapScorer(), **options).postprocess_nodes(
            [NodeWithScore(node=TextNode(text=text)) for text in texts], query_str="red fox"
        )
        documents = Compressor(scorer=WordOverlapScorer(), **options).compress_documents(
            [Document(page_content=text) for text in texts], "red fox"
        )
        assert [node.node.get_content() for node in nodes] == kept
        assert [document.page_content for document in documents] == kept
    with pytest.raises(InvalidInputError, match="the document at position 0 has no text") as told:
        Compressor(scorer=WordOverlapScorer(), no_text="raise").compress_documents(
            [Document(page_content=text) for text in texts], "red fox"
        )
    assert told.value.index == 0


def test_flag_embeddings_passage_max_length_is_explained() -> None:
    with pytest.raises(InvalidInputError, match="max_length limits the tokens of query and pass"):
        load_scorer("offline", passage_max_length=256)  # type: ignore[call-overload]
