"""Write tests/data/golden: tiny models, and the scores that FlagEmbedding gives with them.

Run it where FlagEmbedding scores as its authors meant, on transformers 4.44 to 4.57 (the older
transformers is put there by `make .venv-transformers4/ready`):

    PYTHONPATH=.venv-transformers4 HF_HUB_OFFLINE=1 .venv/bin/python scripts/make_golden.py

The models are stored too, so that the numbers depend neither on the machine that reads them nor
on the random generator of the torch that it has.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import transformers
from FlagEmbedding import FlagModel, FlagReranker

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import tiny_models  # noqa: E402  (needs the path above)
from tests.reference.texts import CONTROL_PAIRS, PLAIN_PAIRS  # noqa: E402

FOLDER = ROOT / "tests" / "data" / "golden"
PAIRS = PLAIN_PAIRS + CONTROL_PAIRS
RERANKER_OPTIONS: tuple[dict[str, Any], ...] = (
    {"max_length": 512},
    {"max_length": 64},
    {"max_length": 96, "query_max_length": 20},
    {"max_length": 128, "query_instruction": "What is: ", "passage_instruction": "这本书: "},
)
EMBEDDER_OPTIONS: tuple[dict[str, Any], ...] = (
    {
        "max_length": 512,
        "query_instruction": "Represent this sentence for searching relevant passages: ",
    },
    {"max_length": 48, "query_instruction": ""},
)


def main() -> None:
    """Build the models, score the pairs, write both."""
    if not transformers.__version__.startswith("4."):
        sys.exit(f"transformers is {transformers.__version__}; FlagEmbedding needs 4.44 to 4.57")
    shutil.rmtree(FOLDER, ignore_errors=True)
    reranker = tiny_models.build_reranker_base(FOLDER / "reranker", seed=100)
    embedder = tiny_models.build_bge_embedder(FOLDER / "embedder", seed=101)
    cases = [
        {"model": "reranker", "options": options, "scores": reranker_scores(reranker, options)}
        for options in RERANKER_OPTIONS
    ]
    cases += [
        {"model": "embedder", "options": options, "scores": embedder_scores(embedder, options)}
        for options in EMBEDDER_OPTIONS
    ]
    golden = {
        "reference": f"FlagEmbedding on transformers {transformers.__version__}, CPU, float32",
        "pairs": PAIRS,
        "cases": cases,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (FOLDER / "scores.json").write_text(text + "\n", encoding="utf-8")


def reranker_scores(folder: Path, options: dict[str, Any]) -> list[float]:
    """One logit per pair."""
    reference = FlagReranker(
        str(folder),
        use_fp16=False,
        devices="cpu",
        max_length=options["max_length"],
        query_max_length=options.get("query_max_length"),
        query_instruction_for_rerank=options.get("query_instruction"),
        passage_instruction_for_rerank=options.get("passage_instruction"),
    )
    return [round(score, 7) for score in reference.compute_score(PAIRS)]


def embedder_scores(folder: Path, options: dict[str, Any]) -> list[float]:
    """One cosine per pair."""
    reference = FlagModel(
        str(folder),
        query_instruction_for_retrieval=options["query_instruction"],
        use_fp16=False,
        devices="cpu",
        query_max_length=options["max_length"],
        passage_max_length=options["max_length"],
    )
    queries = reference.encode_queries([query for query, _ in PAIRS])
    passages = reference.encode_corpus([passage for _, passage in PAIRS])
    return [round(float(score), 7) for score in (queries * passages).sum(axis=1)]


if __name__ == "__main__":
    main()
