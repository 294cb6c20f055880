"""Every key of `config.json` set to another value: the reference's score, or a refusal.

The keys are those of published files and those that the installed transformers knows for the
model. The reference reads the changed folder, one pair at a time.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaForCausalLM,
)

from bge_rerank_integrations import RerankError, load_scorer
from bge_rerank_integrations.types import Pair
from tests import tiny_models
from tests.local.llm import oracle, tiny_llms

# transformers 4 warns of keys that 5 no longer has
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 2e-5
PAIRS: list[Pair] = [
    ("what is a panda?", "bread"),
    ("what is a panda?", "The giant panda is a bear that lives in the mountains of China."),
    ("where do people live?", "many people live in the city of Berlin"),
]
GONE = "<gone>"
"""In place of a value: the key is left out."""

# Other legal values of keys whose type does not tell them.
CHOICES: dict[str, list[Any]] = {
    "hidden_act": ["relu", "silu", "gelu_new"],
    "hidden_activation": ["gelu_pytorch_tanh", "gelu", "relu", None],
    "position_embedding_type": ["relative_key", "relative_key_query"],
    "problem_type": ["regression", "multi_label_classification"],
    "torch_dtype": ["float32", "bfloat16", "float16"],
    "dtype": ["float32", "bfloat16", "float16"],
    "architectures": [["BertModel"], ["XLMRobertaForSequenceClassification"], ["GemmaModel"], []],
    "model_type": ["bert", "roberta", "xlm-roberta", "electra", "gemma", "gemma2", "llama"],
    "id2label": [{"0": "no", "1": "yes"}, {"0": "relevant"}],
    "label2id": [{"no": 0, "yes": 1}, {"relevant": 0}],
    "rope_scaling": [{"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 50.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    ],
    "layer_types": [["sliding_attention"] * 2, ["full_attention"] * 2],
    "use_bidirectional_attention": [True, False],
    "pruned_heads": [{"0": [0]}],
    "head_type": ["raw", "complex"],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "sliding_window": [4, None],
    "final_logit_softcapping": [2.0, None],
    "attn_logit_softcapping": [2.0, None],
    "tokenizer_class": ["XLMRobertaTokenizer"],
    "cache_implementation": ["static"],
    "classifier_dropout": [0.5],
    "auto_map": [{"AutoModel": "modeling.Other"}],
}


@dataclass(frozen=True)
class Subject:
    """A family: its folder, its published keys, and what the reference makes of a folder."""

    build: Callable[[Path], Path]
    scores: Callable[..., list[float]]
    keys: dict[str, Any]
    """With the value that each has where a file leaves it out."""
    refused: tuple[str, ...] = ()
    """Keys that the reference's own code obeys and the oracle does not know."""


def logits(folder: Path, _base: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = _complete(AutoModelForSequenceClassification, folder, dtype)
    return [float(model(**tokenizer(*pair, return_tensors="pt"))[0].squeeze()) for pair in PAIRS]


def cosines(folder: Path, _base: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = _complete(AutoModel, folder, dtype)
    vectors = [
        [model(**tokenizer(text, return_tensors="pt"))[0][0, 0] for text in pair] for pair in PAIRS
    ]
    return [float(torch.cosine_similarity(a, b, dim=0)) for a, b in vectors]


def yes_logits(folder: Path, base: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    model = _complete(GemmaForCausalLM, folder, dtype)
    (yes,) = oracle._Model(base, oracle.REFERENCE)._encode("Yes")
    inputs = [oracle._Model(base, oracle.REFERENCE).ids(*pair, {})[0] for pair in PAIRS]
    return [float(model(torch.tensor([ids]))[0][0, -1, yes]) for ids in inputs]


def oracle_scores(folder: Path, base: Path, dtype: torch.dtype = torch.float64) -> list[float]:
    plain, changed = (oracle._Model(f, oracle.REFERENCE) for f in (base, folder))
    if dtype == torch.float32:
        changed.weights = {n: w.astype(np.float32) for n, w in changed.weights.items()}
    changed.kind = plain.kind
    changed.config.setdefault("rope_theta", 10000.0)
    return [changed.score(*plain.ids(*pair, {}), {})[-1] for pair in PAIRS]


def _complete(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The reference's model; a weight that it would draw at random is an error."""
    model, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    missing = [name for name in info["missing_keys"] if "pooler" not in name or kind != AutoModel]
    assert not missing, missing
    assert not info["mismatched_keys"]
    return model.eval()


# what transformers' classes return or generate, not what they compute
_OUTPUTS = {"return_dict", "torchscript", "output_attentions", "num_return_sequences"}


def _known(model_type: str, *published: str) -> dict[str, Any]:
    """The keys that the installed transformers knows for this model, and those given."""
    known = dict.fromkeys(published) | CONFIG_MAPPING[model_type]().to_dict()
    return {key: value for key, value in known.items() if key not in _OUTPUTS}


# as published files have them, whichever transformers wrote the tiny one
_PUBLISHED = (
    "architectures", "classifier_dropout", "gradient_checkpointing", "id2label", "label2id",
    "num_labels", "pad_token_id", "bos_token_id", "eos_token_id", "output_past", "use_cache",
    "position_embedding_type", "problem_type", "torch_dtype", "dtype", "type_vocab_size",
    "quantization_config", "_name_or_path", "pruned_heads", "tokenizer_class",
)  # fmt: skip
_ROTARY = ("rope_scaling", "rope_parameters", "attention_bias")

SUBJECTS = {
    "bert": Subject(tiny_models.build_bert_reranker, logits, _known("bert", *_PUBLISHED)),
    "xlmr": Subject(tiny_models.build_reranker_base, logits, _known("xlm-roberta", *_PUBLISHED)),
    "embedder": Subject(tiny_models.build_bge_embedder, cosines, _known("bert", *_PUBLISHED)),
    "gemma": Subject(
        # the name of its activation that every transformers reads alike
        lambda folder: tiny_llms.build_gemma(folder, hidden_act="gelu_pytorch_tanh"),
        yes_logits,
        _known("gemma", *tiny_llms.GEMMA),
    ),
    "minicpm": Subject(
        tiny_llms.build_minicpm,
        oracle_scores,
        {**tiny_llms.MINICPM, "rope_parameters": None, "tie_word_embeddings": True},
        (*_ROTARY, "hidden_act", "head_type"),
    ),
    "gemma2": Subject(
        tiny_llms.build_gemma2,
        oracle_scores,
        {**tiny_llms.GEMMA2, **dict.fromkeys(_ROTARY), "tie_word_embeddings": True},
        (*_ROTARY, "hidden_activation"),
    ),
}


def others(key: str, value: Any) -> Iterator[Any]:
    """Legal values of the key's type other than this one."""
    if key in CHOICES:
        yield from (choice for choice in CHOICES[key] if choice != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value + 1, max(0, value - 1))
    elif isinstance(value, float):
        yield 2 * value + 0.25
    elif value is None:
        yield from (1, 7) if key.endswith("_id") else (True, 1)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in built:
            built[name] = SUBJECTS[name].build(tmp_path_factory.mktemp(name))
        return built[name]

    return find


def changed(base: Path, folder: Path, key: str, value: Any) -> Path:
    """The folder with another config.json; its other files are links."""
    for file in base.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop(key, None)
    if value != GONE:
        config[key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, s in SUBJECTS.items() for key in s.keys]
)
def test_a_key_is_obeyed_or_refused(
    name: str, key: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    subject, base = SUBJECTS[name], base_of(name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    values = [*others(key, config.get(key, subject.keys[key])), *([GONE] if key in config else [])]
    for number, value in enumerate(values):
        folder = tmp_path / str(number)
        folder.mkdir()
        changed(base, folder, key, value)
        try:
            with load_scorer(str(folder), device="cpu", precision="fp32") as scorer:
                found = scorer.score(PAIRS)
        except RerankError:
            continue
        assert key not in subject.refused or value == GONE, f"{key}={value!r} was scored"
        with torch.inference_mode():
            expected = subject.scores(folder, base)
        np.testing.assert_allclose(
            found, expected, atol=TOLERANCE, rtol=0, err_msg=f"{key}={value!r}"
        )
