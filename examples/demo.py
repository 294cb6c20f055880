"""Candidates before and after reranking, through LlamaIndex and through LangChain.

    python examples/demo.py
    python examples/demo.py --first-stage embedder --model BAAI/bge-reranker-v2-m3

Then the same over all judged questions: how often the relevant sentence comes first, and nDCG@10,
before and after. That takes seconds with the embedded model and minutes with a large one on a CPU,
so other models than the embedded one are measured only with `--measure`.
"""

import math
from collections.abc import Sequence

from first_stage import (
    Candidate,
    FirstStage,
    Text,
    arguments,
    choose_model,
    open_first_stage,
    read_relevant,
    read_texts,
)
from langchain_retriever import build_retriever
from llama_index.core.schema import QueryBundle
from llama_index_query_engine import build_engine

from bge_rerank_integrations import Reranker, load_reranker
from bge_rerank_integrations.langchain import BGERerank as LangChainRerank
from bge_rerank_integrations.llama_index import BGERerank as LlamaIndexRerank

DEPTH = 20
SHOWN = 3
# picked because BM25 goes wrong on them; the measurement is over all
ASKED = ("What researcher first used the word oxygen ?", "What was Warsaw's population in 1901?")

NEXT = """
Next:
  your own files, on a web page          make chat
  in LlamaIndex                          examples/llama_index_query_engine.py
  in LangChain                           examples/langchain_retriever.py
  whether reranking helps on your data   docs/evaluation.md"""

Ranking = list[tuple[str, float]]
"""Ids of passages and their scores, the best first."""


def main() -> None:
    """Show two questions through both frameworks, then measure over many."""
    parser = arguments(str(__doc__).partition("\n")[0])
    parser.add_argument("--measure", type=int, help="over so many of the 100 questions; 0: none")
    options = parser.parse_args()
    model = choose_model(options.model)
    first_stage = open_first_stage(options.first_stage)
    llama_index = build_engine(first_stage, LlamaIndexRerank(model=model, top_n=DEPTH))
    langchain = build_retriever(first_stage, LangChainRerank(model=model, top_n=DEPTH))

    questions, relevant = read_texts("queries"), read_relevant()
    print(f"\nTwo of {len(questions)} judged questions, picked because BM25 goes wrong on them.")
    for question in [question for question in questions if question.text in ASKED]:
        (before,) = first_stage.candidates([question.text], DEPTH)
        nodes = llama_index.retrieve(QueryBundle(question.text))
        documents = langchain.invoke(question.text)
        through_llama_index = [(node.node_id, float(node.score or 0)) for node in nodes]
        through_langchain = [
            (str(document.id), document.metadata["relevance_score"]) for document in documents
        ]
        print(f"\nQuestion: {question.text}")
        print(f"Candidates: the best {DEPTH} of {options.first_stage}; * is the relevant sentence")
        show_before(before, relevant[question.id])
        texts = dict(passage for passage, _ in before)
        show_after("LlamaIndex", through_llama_index, before, texts, relevant[question.id])
        show_after("LangChain", through_langchain, before, texts, relevant[question.id])
        same = through_llama_index == through_langchain
        print(f"  Both frameworks give the same order and scores: {'yes' if same else 'NO'}")

    count = options.measure
    if count is None:
        count = len(questions) if model == "offline" else 0
    if count:
        measure(first_stage, load_reranker(model), questions[:count], relevant)
    else:
        print(f"\nNot measured; --measure {len(questions)} does it for this model.")
    print(NEXT)


def show_before(candidates: Sequence[Candidate], relevant: str) -> None:
    """The first stage's best, and its rank of the relevant sentence."""
    print(f"  Before: {say_rank([passage.id for passage, _ in candidates], relevant)}")
    for rank, (passage, score) in enumerate(candidates[:SHOWN], start=1):
        mark = "*" if passage.id == relevant else " "
        print(f"  {mark} {rank:2}        {score:7.4f}  {shorten(passage.text)}")


def show_after(
    through: str,
    ranking: Ranking,
    before: Sequence[Candidate],
    texts: dict[str, str],
    relevant: str,
) -> None:
    """The reranked best, each with its rank before."""
    places = {passage.id: rank for rank, (passage, _) in enumerate(before, start=1)}
    print(f"  After, {through}: {say_rank([key for key, _ in ranking], relevant)}")
    for rank, (key, score) in enumerate(ranking[:SHOWN], start=1):
        mark = "*" if key == relevant else " "
        print(f"  {mark} {rank:2} was {places[key]:2} {score:7.2f}  {shorten(texts[key])}")


def say_rank(ids: Sequence[str], relevant: str) -> str:
    """A phrase that says at which rank the relevant sentence is."""
    if relevant not in ids:
        return f"the relevant sentence is not among the {len(ids)}"
    return f"the relevant sentence is at rank {ids.index(relevant) + 1} of {len(ids)}"


def shorten(text: str, width: int = 90) -> str:
    """The beginning of a long text."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def measure(
    first_stage: FirstStage,
    reranker: Reranker,
    questions: Sequence[Text],
    relevant: dict[str, str],
) -> None:
    """Print how often the relevant sentence is first, and nDCG@10, before and after."""
    print(f"\nMeasuring over {len(questions)} questions ...", flush=True)
    ranks: dict[str, list[int | None]] = {"before": [], "after": []}
    found = first_stage.candidates([question.text for question in questions], DEPTH)
    for question, before in zip(questions, found, strict=True):
        results = reranker.rerank(question.text, [passage.text for passage, _ in before])
        orders = {"before": range(len(before)), "after": [result.index for result in results]}
        for name, order in orders.items():
            ids = [before[index].passage.id for index in order]
            gold = relevant[question.id]
            ranks[name].append(ids.index(gold) + 1 if gold in ids else None)
    for name, those in ranks.items():
        first = sum(rank == 1 for rank in those)
        ndcg = sum(gain(rank) for rank in those) / len(those)
        print(f"  {name:6}  relevant sentence first: {first:3}   nDCG@10: {ndcg:.2f}")
    missed = sum(rank is None for rank in ranks["before"])
    print(f"  {missed} relevant sentences were not among the {DEPTH} candidates: beyond reranking")


def gain(rank: int | None) -> float:
    """A question's nDCG@10 where one passage is relevant: 1 at rank 1, 0 beyond 10."""
    return 1 / math.log2(rank + 1) if rank is not None and rank <= 10 else 0.0


if __name__ == "__main__":
    main()
