"""The originals run a model's own code when asked to, LlamaIndex's even unasked; these never do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations.drop_in.llama_index import SentenceTransformerRerank


@pytest.mark.parametrize("asked", [{}, {"trust_remote_code": True}], ids=str)
def test_code_in_a_model_folder_is_never_run(
    reranker_base: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(reranker_base, folder)
    code = f"open({str(canary)!r}, 'w').close()\nclass Model: pass\nclass Config: pass\n"
    (folder / "modeling_canary.py").write_text(code, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {
        "AutoConfig": "modeling_canary.Config",
        "AutoModelForSequenceClassification": "modeling_canary.Model",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    nodes = [NodeWithScore(node=TextNode(text="Giant pandas eat bamboo."))]
    scores = [
        SentenceTransformerRerank(model=str(model), device="cpu", **options)
        .postprocess_nodes(nodes, query_str="What do pandas eat?")[0]
        .score
        for model, options in ((folder, asked), (reranker_base, {}))
    ]
    assert scores[0] == scores[1]
    assert not canary.exists()
    exec(code, {})  # the trap works
    assert canary.exists()
