"""Every contender behind one callable: pairs of one question to one score per pair.

Each runs as its documentation shows, with its own defaults for batches, sorting and threads; only
an activation is switched off where that is an option, so that logits can be compared. All pairs of
a call have the same question, as in a reranking request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pair = tuple[str, str]
Score = Callable[[Sequence[Pair]], NDArray[np.float64]]


class Unavailable(Exception):
    """The contender cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How to load a contender, and what its numbers are.

    `module` is what a program that uses it imports first; "rank" are the negative places of an
    adapter that returns an order without scores. `exact` contenders compute in float32.
    """

    module: str
    load: Callable[[Path], Score]
    scale: Literal["logit", "sigmoid", "rank"] = "logit"
    exact: bool = True


def sentence_transformers(folder: Path) -> Score:
    """`CrossEncoder.predict`, without the sigmoid."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    return lambda pairs: np.asarray(model.predict(list(pairs)), np.float64)


def flag_embedding(folder: Path) -> Score:
    """`FlagReranker.compute_score`."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), devices="cpu")
    return lambda pairs: np.asarray(model.compute_score([list(pair) for pair in pairs]), np.float64)


def transformers(folder: Path) -> Score:
    """The usual loop: batches of 32 in the order given, padded to the longest."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32)
    model.eval()

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        scores = []
        with torch.inference_mode():
            for start in range(0, len(pairs), 32):
                batch = [list(pair) for pair in pairs[start : start + 32]]
                inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
                scores.append(model(**inputs).logits[:, 0])
        return np.asarray(torch.cat(scores), np.float64)

    return score


def onnxruntime(folder: Path) -> Score:
    """ONNX Runtime on the exported graph; tokens, sorting and padded batches are ours."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    from bge_rerank_integrations.local.batching import plan_batches

    file = folder / "onnx" / "model.onnx"
    if not file.is_file():
        raise Unavailable(f"no {file.name}: python -m benchmarks.models {folder.name} --onnx")
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(pairs))]
        scores = np.empty(len(pairs))
        for batch in plan_batches([len(row) for row in ids], max_tokens=2048, padded=True):
            inputs = np.full((len(batch), len(ids[batch[0]])), 1, np.int64)
            mask = np.zeros_like(inputs)
            for row, index in enumerate(batch):
                inputs[row, : len(ids[index])] = ids[index]
                mask[row, : len(ids[index])] = 1
            logits = session.run(None, {"input_ids": inputs, "attention_mask": mask})[0]
            scores[batch] = np.asarray(logits)[:, 0]
        return scores

    return score


def rerankers(folder: Path) -> Score:
    """`Reranker.rank` of the library of that name."""
    from rerankers import Reranker

    model = Reranker(str(folder), model_type="cross-encoder", device="cpu", verbose=0)
    if model is None:
        raise Unavailable("rerankers found no cross-encoder backend")

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        passages = [passage for _, passage in pairs]
        scores = np.empty(len(pairs))
        for result in model.rank(pairs[0][0], passages, doc_ids=list(range(len(pairs)))).results:
            scores[result.document.doc_id] = result.score
        return scores

    return score


def ours_fp32(folder: Path) -> Score:
    """Ours, exact."""
    return _ours(folder, "fp32")


def ours_bf16(folder: Path) -> Score:
    """Ours with bfloat16 products, where the CPU has them."""
    return _ours(folder, "bf16")


def _ours(folder: Path, precision: Literal["fp32", "bf16"]) -> Score:
    from bge_rerank_integrations import load_scorer

    scorer = load_scorer(str(folder), device="cpu", precision=precision)
    if scorer.plan.precision != precision:
        raise Unavailable(f"this CPU has no {precision} instructions")
    return lambda pairs: scorer.score(list(pairs)).astype(np.float64)


def llama_index_sbert(folder: Path) -> Score:
    """LlamaIndex's adapter to sentence-transformers."""
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    return _nodes(SentenceTransformerRerank(model=str(folder), device="cpu", top_n=10**6))


def llama_index_flag(folder: Path) -> Score:
    """LlamaIndex's adapter to FlagEmbedding."""
    from llama_index.postprocessor.flag_embedding_reranker import FlagEmbeddingReranker

    return _nodes(FlagEmbeddingReranker(model=str(folder), top_n=10**6))


def llama_index_ours(folder: Path) -> Score:
    """Our adapter for LlamaIndex."""
    from bge_rerank_integrations.llama_index import BGERerank

    return _nodes(BGERerank(model=str(folder), device="cpu", top_n=None, lazy_load=False))


def _nodes(postprocessor: Any) -> Score:
    from llama_index.core.schema import NodeWithScore, TextNode

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        nodes = [
            NodeWithScore(node=TextNode(text=passage, id_=str(index)), score=0.0)
            for index, (_, passage) in enumerate(pairs)
        ]
        scores = np.empty(len(pairs))
        for node in postprocessor.postprocess_nodes(nodes, query_str=pairs[0][0]):
            scores[int(node.node.node_id)] = node.score
        return scores

    return score


def langchain_huggingface(folder: Path) -> Score:
    """LangChain's adapters to sentence-transformers."""
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    model = HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs={"device": "cpu"})
    compressor = CrossEncoderReranker(model=model, top_n=10**6)

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        # it says which documents are best, and not how good they are
        places = np.empty(len(pairs))
        ranked = compressor.compress_documents(_documents(pairs), pairs[0][0])
        for place, document in enumerate(ranked):
            places[int(document.id or 0)] = -place
        return places

    return score


def langchain_ours(folder: Path) -> Score:
    """Our adapter for LangChain."""
    from bge_rerank_integrations.langchain import BGERerank

    compressor = BGERerank(model=str(folder), device="cpu", top_n=None, lazy_load=False)

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        scores = np.empty(len(pairs))
        for document in compressor.compress_documents(_documents(pairs), pairs[0][0]):
            scores[int(document.id or 0)] = document.metadata["relevance_score"]
        return scores

    return score


def _documents(pairs: Sequence[Pair]) -> list[Any]:
    from langchain_core.documents import Document

    return [
        Document(page_content=passage, id=str(index)) for index, (_, passage) in enumerate(pairs)
    ]


OURS = "ours fp32"
REFERENCE = "sentence-transformers"

PEERS = {
    OURS: Peer("bge_rerank_integrations", ours_fp32),
    "ours bf16": Peer("bge_rerank_integrations", ours_bf16, exact=False),
    REFERENCE: Peer("sentence_transformers", sentence_transformers),
    "FlagEmbedding": Peer("FlagEmbedding", flag_embedding),
    "transformers": Peer("transformers", transformers),
    "ONNX Runtime": Peer("onnxruntime", onnxruntime),
    "rerankers": Peer("rerankers", rerankers),
}

LLAMA_INDEX_OURS = "LlamaIndex: ours"
LANGCHAIN_OURS = "LangChain: ours"

LLAMA_INDEX = {
    LLAMA_INDEX_OURS: Peer(
        "bge_rerank_integrations.llama_index", llama_index_ours, scale="sigmoid"
    ),
    "LlamaIndex: SentenceTransformerRerank": Peer(
        "llama_index.postprocessor.sbert_rerank", llama_index_sbert, scale="sigmoid"
    ),
    "LlamaIndex: FlagEmbeddingReranker": Peer(
        "llama_index.postprocessor.flag_embedding_reranker", llama_index_flag
    ),
}

LANGCHAIN = {
    LANGCHAIN_OURS: Peer("bge_rerank_integrations.langchain", langchain_ours, scale="sigmoid"),
    "LangChain: HuggingFaceCrossEncoder": Peer(
        "langchain_community.cross_encoders", langchain_huggingface, scale="rank"
    ),
}

EVERYONE = PEERS | LLAMA_INDEX | LANGCHAIN
