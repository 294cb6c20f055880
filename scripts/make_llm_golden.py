"""Write tests/data/golden_llm/scores.json: the scores FlagEmbedding gives to tiny LLM rerankers.

All three of its classes run on transformers 4.44 to 4.47 only. Put one before the environment:

    .venv/bin/python -m pip install --no-deps --target .venv-transformers447 \
        transformers==4.47.1 tokenizers==0.21.0 huggingface-hub==0.36.2 datasets==4.4.2
    PYTHONPATH=.venv-transformers447 HF_HUB_OFFLINE=1 .venv/bin/python scripts/make_llm_golden.py

The models are not stored: tests/local/llm/tiny_llms.py builds them the same to the bit everywhere.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from FlagEmbedding import (
    FlagLLMReranker,
    LayerWiseFlagLLMReranker,
    LightWeightFlagLLMReranker,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.local.llm.tiny_llms import MODELS  # noqa: E402  (needs the path above)
from tests.reference.texts import CONTROL_PAIRS, PLAIN_PAIRS  # noqa: E402

FILE = ROOT / "tests" / "data" / "golden_llm" / "scores.json"
PAIRS = PLAIN_PAIRS + CONTROL_PAIRS
Options = dict[str, Any]

CLASSES = {
    "gemma": FlagLLMReranker,
    "minicpm": LayerWiseFlagLLMReranker,
    "gemma2": LightWeightFlagLLMReranker,
}
THEIR_NAMES = {
    "query_instruction": "query_instruction_for_rerank",
    "passage_instruction": "passage_instruction_for_rerank",
}

TEXT_OPTIONS: tuple[Options, ...] = (
    {"max_length": 64},
    {"max_length": 96, "query_max_length": 20},
    {"prompt": "Is passage B about what query A asks? Predict either 'Yes' or 'No'."},
    {"query_instruction": "What is: ", "passage_instruction": "这本书: "},
    {"query_instruction": "", "passage_instruction": ""},
    {"max_length": 48, "prompt": "Yes or No?", "passage_instruction": "passage: "},
)


def requests() -> Iterator[tuple[str, Options]]:
    """Model and options of every case."""
    for model in ("gemma", "gemma-untied"):
        yield model, {}
        yield from ((model, options) for options in TEXT_OPTIONS)
    layers = range(2, 9)
    for model in ("minicpm", "gemma2"):
        yield model, {}
        yield from ((model, {"cutoff_layers": [layer]}) for layer in layers)
        for several in ([2, 8], [3, 5, 6], list(layers)):
            yield model, {"cutoff_layers": several}
        yield from ((model, {"cutoff_layers": [5], **options}) for options in TEXT_OPTIONS)
        yield model, {"cutoff_layers": [3, 8], **TEXT_OPTIONS[0]}
    for model in ("gemma2", "gemma2-window"):
        for ratio in (2, 3, 4, 8):
            for places in ([1], [4], [2, 5], [7], [3, 6]):
                compress = {"compress_ratio": ratio, "compress_layers": places}
                yield model, compress
                yield model, {"cutoff_layers": [3, 6, 7], **compress}
        compress = {"cutoff_layers": [6], "compress_ratio": 2, "compress_layers": [3, 7]}
        yield from ((model, {**compress, **options}) for options in TEXT_OPTIONS)
    yield "gemma2-window", {}
    yield "gemma2-window", {"cutoff_layers": [2, 5]}
    for cutoffs in ([2], [4], [8], [4, 8], [2, 4, 6, 8]):
        yield "gemma2-steps", {"cutoff_layers": cutoffs}
        yield (
            "gemma2-steps",
            {"cutoff_layers": cutoffs, "compress_ratio": 4, "compress_layers": [1, 3]},
        )


def main() -> None:
    """Build the models, score the pairs, write the scores."""
    if not transformers.__version__.startswith(("4.44", "4.45", "4.46", "4.47")):
        sys.exit(f"transformers is {transformers.__version__}; needed: 4.44 to 4.47, see above")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        loaded: dict[str, Any] = {}
        for model, options in requests():
            if model not in loaded:
                place = MODELS[model](Path(folder, model))
                kind = CLASSES[model.partition("-")[0]]
                loaded = {model: kind(str(place), use_fp16=False, devices="cpu")}
            cases.append(score(loaded[model], model, options, PAIRS))
            if len(options) == 0:
                cases.append(score(loaded[model], model, options, PAIRS, normalize=True))
                cases += [score(loaded[model], model, options, [pair]) for pair in PAIRS[:12:4]]
    golden = {
        "reference": f"FlagEmbedding on transformers {transformers.__version__}, CPU, float32",
        "pairs": PAIRS,
        "cases": cases,
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(pretty(golden), encoding="utf-8")


def score(
    reference: Any, model: str, options: Options, pairs: list[Any], *, normalize: bool = False
) -> dict[str, Any]:
    """One case: a list of scores for each layer, ascending."""
    theirs = {THEIR_NAMES.get(name, name): value for name, value in options.items()}
    # instructions are taken from the object, all other options from the call
    for name in THEIR_NAMES.values():
        default = "A: " if name.startswith("query") else "B: "
        setattr(reference, name, theirs.pop(name, default))
    scores = reference.compute_score(pairs, normalize=normalize, **theirs)
    layers = scores if isinstance(scores[0], list) else [scores]
    return {
        "model": model,
        "options": options,
        "normalize": normalize,
        "pairs": [PAIRS.index(pair) for pair in pairs],
        "scores": [[round(number, 7) for number in layer] for layer in layers],
    }


def pretty(golden: dict[str, Any]) -> str:
    """JSON with a line for each pair and each case."""
    lines = {
        name: ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in golden[name])
        for name in ("pairs", "cases")
    }
    head = json.dumps(golden["reference"])
    return (
        f'{{\n "reference": {head},\n "pairs": [\n  {lines["pairs"]}\n ],\n'
        f' "cases": [\n  {lines["cases"]}\n ]\n}}\n'
    )


if __name__ == "__main__":
    main()
