"""Every architecture of transformers' classifiers: its own scores in any batch, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_rerank_integrations import RerankError, load_scorer
from bge_rerank_integrations.types import FloatArray, Pair
from tests.folders.architectures import KINDS, build_model, takes_types, write_folder

# transformers 4 warns of classes that 5 no longer has, and torch of what it uses
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 2e-5
PAIRS: list[Pair] = [
    ("what is a panda?", "hi"),
    ("what is a panda?", "The giant panda is a bear that lives in the mountains of China."),
    ("how many people live in Berlin?", "About 3,520,031 people were registered in the city."),
]
# pad_token_id and eos_token_id of the tokenizers
TOKENIZERS = {"bert_reranker": (0, 3), "reranker_base": (1, 2)}

_NO_LIMIT = "max_position_embeddings=None"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("led", "bloom", "ctrl", "funnel", "gpt-sw3", "gpt2", "gpt_bigcode", "gptj", "mpt", "mt5",
         "openai-gpt", "t5", "umt5", "xlnet"),
        _NO_LIMIT,
    ),
    **dict.fromkeys(
        ("flaubert-bert_reranker", "gpt_neo-bert_reranker", "xlm-bert_reranker"), "the token_type"
    ),
    "qwen2": "tokenizer_class='(Bert|XLMRoberta)Tokenizer'",
}  # fmt: skip
"""Architectures that are refused, and the key that the refusal names."""


def one_by_one(folder: Path, pairs: list[Pair]) -> FloatArray:
    """The logit by transformers of each pair alone, from all that its tokenizer gives."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return np.array(
            [model.eval()(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs],
            dtype=np.float32,
        )


@pytest.mark.parametrize("tokens", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_transformers_own_in_any_batch(
    kind: str, tokens: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(tokens)
    pad, eos = TOKENIZERS[tokens]
    size = AutoTokenizer.from_pretrained(source).vocab_size
    model = build_model(kind, vocab_size=size, pad_token_id=pad, eos_token_id=eos, num_labels=1)
    if tokens == "bert_reranker" and not takes_types(model):
        return  # no other input than the second tokenizer's
    folder = write_folder(model, source, tmp_path / "model")
    if said := REFUSED.get(kind) or REFUSED.get(f"{kind}-{tokens}"):
        with pytest.raises(RerankError, match=said):
            load_scorer(str(folder), device="cpu", precision="fp32").score(PAIRS)
        return
    expected = one_by_one(folder, PAIRS)
    assert expected.std() > 0.005, "scores that agree could not tell a wrong one"
    scorer = load_scorer(str(folder), device="cpu", precision="fp32")
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    np.testing.assert_allclose(alone, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=TOLERANCE, rtol=0)
    turned = scorer.score(PAIRS[::-1])[::-1]
    np.testing.assert_allclose(turned, expected, atol=TOLERANCE, rtol=0)
