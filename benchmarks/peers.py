"""Every contender behind one callable: pairs of one question to one score per pair.

Each runs as its documentation shows, with its own defaults for batches, sorting and threads; only
an activation is switched off where that is an option, so that logits can be compared. All pairs of
a call have the same question, as in a reranking request.

The frameworks' adapters are in `adapter_peers`.
"""

import json
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
    adapter that returns an order without scores. `pace` is the rough share of float32's fastest
    matrix product that it reaches, to guess how long a race will take. `packages` is a folder in
    the repository that goes before the environment's own packages.
    """

    module: str
    load: Callable[[Path], Score]
    pace: float
    scale: Literal["logit", "sigmoid", "rank"] = "logit"
    precision: Literal["fp32", "bf16"] = "fp32"
    packages: str | None = None


def sentence_transformers(folder: Path) -> Score:
    """`CrossEncoder.predict`, without the sigmoid."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    return lambda pairs: np.asarray(model.predict(list(pairs)), np.float64)


def sentence_transformers_onnx(folder: Path) -> Score:
    """`CrossEncoder.predict` on its ONNX backend, in float32, on the exported graph."""
    import torch
    from sentence_transformers import CrossEncoder

    onnx_file(folder)
    model = CrossEncoder(
        str(folder), backend="onnx", device="cpu", activation_fn=torch.nn.Identity()
    )
    return lambda pairs: np.asarray(model.predict(list(pairs)), np.float64)


def flag_embedding(folder: Path) -> Score:
    """`FlagReranker.compute_score`."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(folder), devices="cpu")
    return lambda pairs: np.asarray(model.compute_score([list(pair) for pair in pairs]), np.float64)


def flag_llm(folder: Path) -> Score:
    """`FlagLLMReranker.compute_score` in float32."""
    return _flag_llm(folder, use_bf16=False)


def flag_llm_bf16(folder: Path) -> Score:
    """`FlagLLMReranker.compute_score` in bfloat16."""
    return _flag_llm(folder, use_bf16=True)


def _flag_llm(folder: Path, *, use_bf16: bool) -> Score:
    from FlagEmbedding import FlagLLMReranker

    model = FlagLLMReranker(str(folder), use_fp16=False, use_bf16=use_bf16, devices="cpu")
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
    """ONNX Runtime on the exported graph."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(onnx_file(folder)), providers=["CPUExecutionProvider"])
    return _graph(folder, lambda feeds: np.asarray(session.run(None, feeds)[0]))


def openvino(folder: Path) -> Score:
    """OpenVINO on the exported graph, in float32 also where it would choose bfloat16."""
    import openvino as ov  # type: ignore[import-untyped]

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = ov.Core().compile_model(str(onnx_file(folder)), "CPU", exact)
    return _graph(folder, lambda feeds: np.asarray(model(feeds)[0]))


def _graph(folder: Path, run: Callable[[dict[str, Any]], NDArray[Any]]) -> Score:
    """The scores of an exported graph; tokens, sorting and padded batches are ours."""
    from tokenizers import Tokenizer

    from bge_rerank_integrations.local.engine import plan_batches

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def score(pairs: Sequence[Pair]) -> NDArray[np.float64]:
        encoded = tokenizer.encode_batch_fast(list(pairs))
        ids = [encoding.ids for encoding in encoded]
        scores = np.empty(len(pairs))
        for batch in plan_batches([len(row) for row in ids], max_tokens=2048, padded=True):
            inputs = np.full((len(batch), len(ids[batch[0]])), 1, np.int64)
            mask, types = np.zeros_like(inputs), np.zeros_like(inputs)
            for row, index in enumerate(batch):
                inputs[row, : len(ids[index])] = ids[index]
                mask[row, : len(ids[index])] = 1
                types[row, : len(ids[index])] = encoded[index].type_ids
            feeds = {"input_ids": inputs, "attention_mask": mask}
            if config["model_type"] == "bert":
                feeds["token_type_ids"] = types
            scores[batch] = run(feeds)[:, 0]
        return scores

    return score


def fastembed(folder: Path) -> Score:
    """`TextCrossEncoder.rerank` on the exported graph."""
    from fastembed.common.model_description import ModelSource  # type: ignore[import-not-found]
    from fastembed.rerank.cross_encoder import TextCrossEncoder  # type: ignore[import-not-found]

    onnx_file(folder)
    source = ModelSource(url=folder.as_uri())
    TextCrossEncoder.add_custom_model(folder.name, source)
    model = TextCrossEncoder(folder.name, specific_model_path=str(folder))
    return lambda pairs: np.asarray(
        list(model.rerank(pairs[0][0], [passage for _, passage in pairs])), np.float64
    )


def onnx_file(folder: Path) -> Path:
    """A model's exported graph. Raises `Unavailable` if it was not exported."""
    file = graph_file(folder)
    if not file.is_file():
        raise Unavailable(f"no ONNX graph: python -m benchmarks.models {folder.name} --onnx")
    return file


def graph_file(folder: Path) -> Path:
    """Where a model's exported graph is, or will be."""
    return folder / "onnx" / "model.onnx"


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

    # as the others read it, so that no one cuts what another scores
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    limit = settings.get("model_max_length")
    scorer = load_scorer(str(folder), device="cpu", precision=precision, max_length=limit)
    if scorer.plan.precision != precision:
        raise Unavailable(f"this CPU has no {precision} instructions")
    return lambda pairs: scorer.score(list(pairs)).astype(np.float64)


OURS = "ours fp32"
OURS_BF16 = "ours bf16"
REFERENCE = "sentence-transformers"
FLAG = "FlagEmbedding"
ORT = "ONNX Runtime"
OPENVINO = "OpenVINO"
FASTEMBED = "fastembed"
ST_ONNX = "sentence-transformers ONNX"
FLAG_LLM = "FlagEmbedding LLM"
FLAG_LLM_BF16 = "FlagEmbedding LLM bf16"

TRANSFORMERS_4 = ".venv-bench-transformers4"

PEERS = {
    OURS: Peer("bge_rerank_integrations", ours_fp32, 0.75),
    OURS_BF16: Peer("bge_rerank_integrations", ours_bf16, 1.8, precision="bf16"),
    REFERENCE: Peer("sentence_transformers", sentence_transformers, 0.4),
    FLAG: Peer("FlagEmbedding", flag_embedding, 0.12, packages=TRANSFORMERS_4),
    "transformers": Peer("transformers", transformers, 0.3),
    ORT: Peer("onnxruntime", onnxruntime, 0.55),
    OPENVINO: Peer("openvino", openvino, 0.55),
    FASTEMBED: Peer("fastembed", fastembed, 0.4, packages=TRANSFORMERS_4),
    "rerankers": Peer("rerankers", rerankers, 0.3),
    ST_ONNX: Peer(
        "sentence_transformers", sentence_transformers_onnx, 0.35, packages=TRANSFORMERS_4
    ),
    FLAG_LLM: Peer("FlagEmbedding", flag_llm, 0.15, packages=TRANSFORMERS_4),
    FLAG_LLM_BF16: Peer(
        "FlagEmbedding", flag_llm_bf16, 0.8, precision="bf16", packages=TRANSFORMERS_4
    ),
}
