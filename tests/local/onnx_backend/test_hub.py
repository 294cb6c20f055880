"""Graphs from a hub: the graph, its weights, tokenizer and config come, and nothing else does."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.local.onnx_backend.load import DEFAULTS, downloaded
from tests.local.hub import running_hub
from tests.local.onnx_backend.conftest import Exported

PAIRS = [("what is a panda?", "The giant panda is a bear."), ("大熊猫吃什么？", "竹子。")]

SCORE = """
import json, sys
from bge_rerank_integrations import RerankError, load_scorer
missing, model, options, pairs = json.load(sys.stdin)
for name in missing:
    sys.modules[name] = None
try:
    print(json.dumps(load_scorer(model, **options).score(pairs).tolist()))
except RerankError as error:
    print(json.dumps(str(error)))
"""


def ask(address: str, folder: Path, *, missing: tuple[str, ...] = (), **options: Any) -> Any:
    """Scores in a process whose hub is at an address: the client reads it when it is imported."""
    kept = {k: value for k, value in os.environ.items() if not k.startswith(("HF_", "HUG"))}
    options["cache_dir"] = str(folder / "downloads")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCORE],
        input=json.dumps([missing, "org/reranker", options, PAIRS]),
        capture_output=True,
        text=True,
        check=True,
        env={
            **kept,
            "HF_ENDPOINT": address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        },
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_only_what_a_graph_needs_is_fetched(
    exported: Exported, reranker_base: Path, tmp_path: Path
) -> None:
    """The layout that BAAI publishes: safetensors and pickles beside onnx/model.onnx."""
    repository = Path(shutil.copytree(exported("reranker_base", "fp32"), tmp_path / "repository"))
    shutil.copy(reranker_base / "model.safetensors", repository)
    for name in ("pytorch_model.bin", "onnx/model_O4.onnx", "onnx/setup.py", "onnx/x.onnx_data"):
        (repository / name).write_bytes(b"never to be fetched")
    expected = load_scorer(str(repository), backend="onnx").score(PAIRS)
    with running_hub({"org/reranker": {"main": repository}}) as hub:
        found = ask(hub.address, tmp_path / "first", backend="onnx")
        assert found == expected.tolist()
        assert hub.files_asked_for == {
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/model.onnx",
            "onnx/model.onnx_data",
        }
        found = ask(hub.address, tmp_path / "first", backend="openvino", local_files_only=True)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        found = ask(hub.address, tmp_path / "second", missing=("torch", "safetensors"))
        assert found == expected.tolist()

        hub.asked.clear()
        said = ask(hub.address, tmp_path / "third", missing=("onnxruntime",), backend="onnx")
        assert 'pip install "bge-rerank-integrations[onnx]"' in said
        assert hub.asked == [], "nothing is downloaded for a backend that is not there"


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.safetensors", "onnx/model.bin", "onnx/model.onnx_data/run.py",
        "onnx/model_quantized.onnx", "onnx/model.onnx.py", "onnx/model.onnx_data.py",
        "model.onnx_data_1.py", "modeling_custom.py",
    ],
)  # fmt: skip
def test_no_pattern_brings_anything_else(name: str) -> None:
    assert not any(fnmatch(name, pattern) for pattern in downloaded(DEFAULTS["openvino"]))


@pytest.mark.parametrize(
    "name",
    [
        "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx.data", "onnx/model.onnx_data_1",
        "model.onnx", "model.onnx_data", "config.json", "1_Pooling/config.json",
    ],
)  # fmt: skip
def test_the_patterns_bring_a_graph_and_its_weights(name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in downloaded(DEFAULTS["openvino"]))
