"""Other libraries' scores for a model folder, one pair at a time, for `verify` to compare with.

Each function loads the folder with one library and gives that library's raw scores in float32 on
the CPU. None shares code with this package's own forward passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.local.checkpoint import GRAPHS, Checkpoint
from bge_rerank_integrations.local.model_config import position_limit
from bge_rerank_integrations.local.st_config import SAVED_BY, SETTINGS
from bge_rerank_integrations.local.text.llm_prompt import YES_OR_NO
from bge_rerank_integrations.types import FloatArray, Pair, Truncation

ReferenceScores = Callable[[Path, Family, Sequence[Pair]], FloatArray]


class NotComparable(Exception):
    """A library gives no reference for a model; the message says why."""


def transformers_scores(folder: Path, family: Family, pairs: Sequence[Pair]) -> FloatArray:
    """Transformers' own model and tokenizer: classifiers of one label, and v2-gemma's kind.

    A classifier's pair is cut by `longest_first`, a causal model's by FlagEmbedding's rule.
    """
    if family is Family.CAUSAL:
        return _causal_scores(folder, pairs)
    if _is_saved_cross_encoder(folder):
        raise NotComparable("transformers does not read the settings of sentence-transformers")
    if family is not Family.ENCODER:
        raise NotComparable(f"transformers alone has no rule that scores a {family} model")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    model.eval()
    if model.config.num_labels != 1:
        raise NotComparable(f"the model has {model.config.num_labels} labels, not one")
    with torch.inference_mode():
        logits = [model(**inputs).logits[0, 0] for inputs in _inputs(folder, pairs, "pt")]
    return np.asarray(logits, dtype=np.float32)


def _inputs(folder: Path, pairs: Sequence[Pair], tensors: str) -> Iterator[Mapping[str, Any]]:
    """The model's inputs for each pair by itself, cut by `longest_first`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    limit = min(512, position_limit(Checkpoint(str(folder), folder).config))
    for query, passage in pairs:
        # lists, because an empty second text by itself would be left out
        yield tokenizer(
            [query], [passage], truncation="longest_first", max_length=limit, return_tensors=tensors
        )


def _causal_scores(folder: Path, pairs: Sequence[Pair]) -> FloatArray:
    """The logit of "Yes" behind FlagEmbedding's prompt, by transformers' causal model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    separator, tail = ids_of("\n"), [*ids_of("\n"), *ids_of(YES_OR_NO)]
    yes = ids_of("Yes")[0]
    scores = []
    for query, passage in pairs:
        head = [tokenizer.bos_token_id, *ids_of(f"A: {query}")[:384], *separator]
        body = ids_of(f"B: {passage}")[: min(512, 512 + len(tail) - len(head))]
        with torch.inference_mode():
            logits = model(torch.tensor([[*head, *body, *tail]])).logits
        scores.append(float(logits[0, -1, yes]))
    return np.asarray(scores, dtype=np.float32)


def sentence_transformers_scores(folder: Path, family: Family, pairs: Sequence[Pair]) -> FloatArray:
    """sentence-transformers' `CrossEncoder` without activation, or the similarity of embeddings."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    if family is Family.ENCODER:
        encoder = CrossEncoder(
            str(folder),
            device="cpu",
            activation_fn=torch.nn.Identity(),
            max_length=None if _is_saved_cross_encoder(folder) else 512,
        )
        return np.asarray(encoder.predict(list(pairs), batch_size=1), dtype=np.float32)
    if family is not Family.BI_ENCODER:
        raise NotComparable(f"sentence-transformers does not score {family} models as BGE's do")
    embedder = SentenceTransformer(str(folder), device="cpu")
    scores = [
        embedder.similarity(embedder.encode_query([query]), embedder.encode_document([passage]))
        for query, passage in pairs
    ]
    return np.asarray(torch.cat(scores).ravel(), dtype=np.float32)


def flag_embedding_scores(folder: Path, family: Family, pairs: Sequence[Pair]) -> FloatArray:
    """FlagEmbedding's classes, which cut the query at 384 tokens and then the passage."""
    import FlagEmbedding

    if int(transformers.__version__.partition(".")[0]) > 4:
        raise NotComparable(
            f"FlagEmbedding tokenizes texts a second time under transformers "
            f"{transformers.__version__}, which changes some scores; install transformers<5"
        )
    if _is_saved_cross_encoder(folder):
        raise NotComparable("FlagEmbedding does not read the settings of sentence-transformers")
    kinds = {
        Family.ENCODER: "FlagReranker",
        Family.CAUSAL: "FlagLLMReranker",
        Family.LAYERWISE: "LayerWiseFlagLLMReranker",
        Family.LIGHTWEIGHT: "LightWeightFlagLLMReranker",
    }
    if family not in kinds:
        raise NotComparable("an embedder's instructions are the caller's to give in FlagEmbedding")
    reranker = getattr(FlagEmbedding, kinds[family])(str(folder), use_fp16=False, devices="cpu")
    scores = [np.ravel(reranker.compute_score([pair]))[-1] for pair in pairs]
    return np.asarray(scores, dtype=np.float32)


def onnx_runtime_scores(folder: Path, family: Family, pairs: Sequence[Pair]) -> FloatArray:
    """The folder's ONNX graph in a plain session, with transformers' tokenizer."""
    from bge_rerank_integrations.local.onnx_backend.onnxruntime import onnxruntime

    graphs = [folder / name for name in GRAPHS if (folder / name).is_file()]
    if not graphs or family is not Family.ENCODER:
        raise NotComparable(f"no graph of a cross-encoder under {' or '.join(GRAPHS)}")
    options = onnxruntime.SessionOptions()
    # without it 8-bit kernels of CPUs without VNNI saturate
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(graphs[0], options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    scores = []
    for inputs in _inputs(folder, pairs, "np"):
        given = {"token_type_ids": np.zeros_like(inputs["input_ids"]), **inputs}
        scores.append(np.ravel(session.run(None, {name: given[name] for name in names})[0])[0])
    return np.asarray(scores, dtype=np.float32)


GRAPH_REFERENCE = "ONNX Runtime"
REFERENCES: dict[str, tuple[str, ReferenceScores, Truncation]] = {
    "transformers": ("transformers", transformers_scores, "longest_first"),
    "sentence-transformers": (
        "sentence-transformers", sentence_transformers_scores, "longest_first",
    ),
    GRAPH_REFERENCE: ("onnxruntime", onnx_runtime_scores, "longest_first"),
    "FlagEmbedding": ("FlagEmbedding", flag_embedding_scores, "only_second"),
}  # fmt: skip
"""By name: the distribution, its scores, and how it cuts a pair that is too long."""


def _is_saved_cross_encoder(folder: Path) -> bool:
    """Whether sentence-transformers saved it, with a prompt, a length or modules of its own."""
    checkpoint = Checkpoint(str(folder), folder)
    saved = checkpoint.read_keys(SETTINGS).get("model_type") == "CrossEncoder"
    return saved or not checkpoint.config.keys().isdisjoint(SAVED_BY)
