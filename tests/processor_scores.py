"""The raw scores that no processor may change: of the embedded models and of a tiny one per family.

    python -m tests.processor_scores FOLDER

prints them as JSON, and makes the tiny models in FOLDER unless they are there. Their weights are
stored or drawn from a hash, so they are the same on every machine.
`scripts/make_processor_scores.py` records what `tests/test_processors.py` compares with.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bge_rerank_integrations import Scorer, load_scorer
from bge_rerank_integrations.tools.export import export_onnx
from tests.local.llm import tiny_llms

STORED = Path(__file__).parent / "data" / "golden"
ENCODERS = ("reranker", "embedder")
LLMS = ("gemma", "minicpm", "gemma2")
PAIRS = [
    ("What do pandas eat?", "Pandas eat bamboo."),
    ("What do pandas eat?", "The capital of France is Paris; the capital of Germany is Berlin."),
    ("how many people live in Berlin", "About 3,520,031 people were registered there in 2015."),
    ("How many people live in Berlin?", "The museum in New York opens at ten and closes at six."),
    ("大熊猫吃什么？", "大熊猫是中国特有的动物，主要生活在四川的山区，吃竹子。"),
    ("", "A ship of steel floats, because it pushes aside more water than its own weight."),
    ("Is it possible to store the energy of the sun?", "Yes: in batteries, in heat, and in water."),
    ("why does a ship of steel float", "Heat moves from the hot body to the cold one. " * 8),
]


def build(folder: Path) -> None:
    """The tiny models that are not stored: LLM rerankers, and graphs of the stored encoders."""
    for name in LLMS:
        tiny_llms.MODELS[name](folder / name)
    for name in ENCODERS:
        export_onnx(str(STORED / name), folder / f"{name}-fp32")
        export_onnx(str(STORED / name), folder / f"{name}-int8", dtype="int8")


def scorers(folder: Path) -> Iterator[tuple[str, Scorer]]:
    """Each with the name of its row in the table."""
    for model in ("offline", "offline-embedder"):
        yield model, load_scorer(model)
    for name in (*ENCODERS, *LLMS):
        model = str((folder if name in LLMS else STORED) / name)
        yield f"{name}, torch fp32", load_scorer(model, device="cpu", precision="fp32")
    for name in ENCODERS:
        for number_format in ("fp32", "int8"):
            model = str(folder / f"{name}-{number_format}")
            yield f"{name}, onnx {number_format}", load_scorer(model, backend="onnx")
            yield f"{name}, openvino {number_format}", load_scorer(model, backend="openvino")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if not (place / LLMS[0]).is_dir():
        build(place)
    table: dict[str, Any] = {}
    for row, scorer in scorers(place):
        scores = [round(score, 7) for score in scorer.score(PAIRS).tolist()]
        # without the fingerprint of the files, which an exporter may write otherwise
        table[row] = {"name": scorer.name.partition("[")[2], "scores": scores}
    sys.stdout.write(json.dumps(table))
