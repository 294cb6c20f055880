"""One call from an adapter to the model's forward: how deep it is, and how often a text is checked.

Both are counted by the interpreter's own profiling hook, on the caller's thread and on the one that
computes.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

import bge_rerank_integrations
from bge_rerank_integrations import langchain, llama_index, load_scorer
from bge_rerank_integrations.base import contract
from bge_rerank_integrations.base.deadline import off_main_thread
from bge_rerank_integrations.local.torch_backend.encoder import FlatEncoder
from bge_rerank_integrations.types import Scorer
from bge_rerank_integrations.wrappers.cache import CachedScorer, MemoryStore
from bge_rerank_integrations.wrappers.windows import WindowedScorer
from tests.tiny_models import build_bert_reranker

OURS = Path(bge_rerank_integrations.__file__).parent
QUERY = "where do pandas live"
PASSAGES = [f"pandas live in the mountains of province number {number}" for number in range(10)]
CHECKS = (contract.check_text.__code__, contract.check_str.__code__)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A local cross-encoder on the CPU."""
    return load_scorer(build_bert_reranker(tmp_path_factory.mktemp("encoder")), device="cpu")


@contextmanager
def profiled(hook: Callable[[FrameType], None]) -> Iterator[None]:
    """Call the hook at each Python call on this thread and on the one that computes for it."""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            hook(frame)

    off_main_thread(sys.setprofile, profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        off_main_thread(sys.setprofile, None)


def stack_of(frame: FrameType | None) -> list[CodeType]:
    """The package's own frames from this one outwards."""
    found = []
    while frame is not None:
        if OURS in Path(frame.f_code.co_filename).parents:
            found.append(frame.f_code)
        frame = frame.f_back
    return found


def path_to_forward(call: Callable[[], object]) -> list[CodeType]:
    """Our frames when the forward begins: those of its thread, and of the caller that waits."""
    caller = threading.get_ident()
    found: list[CodeType] = []

    def hook(frame: FrameType) -> None:
        if frame.f_code is not FlatEncoder.run.__code__ or found:
            return
        found.extend(stack_of(frame))
        if threading.get_ident() != caller:
            found.extend(stack_of(sys._current_frames()[caller]))

    with profiled(hook):
        call()
    return found


def checks_of(call: Callable[[], object]) -> Counter[str]:
    """How often each text was checked."""
    seen: Counter[str] = Counter()

    def hook(frame: FrameType) -> None:
        # check_text calls check_str, which is the same check
        inner = frame.f_back is not None and frame.f_back.f_code in CHECKS
        if frame.f_code in CHECKS and not inner:
            seen[frame.f_locals["text"]] += 1

    with profiled(hook):
        call()
    return seen


def postprocess(scorer: Scorer) -> Callable[[], object]:
    """A call of LlamaIndex's adapter."""
    reranker = llama_index.BGERerank(scorer=scorer)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in PASSAGES]
    return lambda: reranker.postprocess_nodes(nodes, query_str=QUERY)


def compress(scorer: Scorer) -> Callable[[], object]:
    """A call of LangChain's adapter."""
    reranker = langchain.BGERerank(scorer=scorer)
    documents = [Document(page_content=text) for text in PASSAGES]
    return lambda: reranker.compress_documents(documents, QUERY)


@pytest.mark.parametrize("adapter", [postprocess, compress])
def test_at_most_14_frames_in_7_files(
    scorer: Scorer, adapter: Callable[[Scorer], Callable[[], object]]
) -> None:
    call = adapter(scorer)
    call()  # what is loaded once is loaded now
    frames = path_to_forward(call)
    shown = [f"{Path(code.co_filename).name} {code.co_qualname}" for code in reversed(frames)]
    assert shown[-1] == "encoder.py FlatEncoder.run"
    assert len(frames) <= 14, shown
    assert len({code.co_filename for code in frames}) <= 7, shown


@pytest.mark.parametrize("adapter", [postprocess, compress])
@pytest.mark.parametrize("wrapped", ["plain", "windows", "cache"])
def test_a_text_is_checked_once(
    scorer: Scorer, adapter: Callable[[Scorer], Callable[[], object]], wrapped: str
) -> None:
    if wrapped == "windows":
        scorer = WindowedScorer(scorer)
    if wrapped == "cache":
        scorer = CachedScorer(scorer, MemoryStore())
    checks = checks_of(adapter(scorer))
    assert set(checks) == {QUERY, *PASSAGES}
    assert max(checks.values()) == 1, checks


def test_pairs_of_a_caller_are_checked_once(scorer: Scorer) -> None:
    pairs = [(f"{QUERY} {text}", text) for text in PASSAGES]
    checks = checks_of(lambda: scorer.score(pairs))
    assert checks == Counter([text for pair in pairs for text in pair])


def test_the_mark_does_not_outlive_a_change() -> None:
    """A list made from checked pairs is a plain one, which is checked again."""
    checked = contract.read_pairs([("a", "b")])
    assert contract.read_pairs(checked) is checked
    assert type([*checked, ("c", "d")]) is list
    assert type(checked[:1]) is list
