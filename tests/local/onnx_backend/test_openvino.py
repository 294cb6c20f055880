"""What is OpenVINO's own: its number format, its telemetry, its memory, and links to weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import load_scorer
from bge_rerank_integrations.local.onnx_backend.file import read_graph_file
from bge_rerank_integrations.local.onnx_backend.openvino import OpenVino
from tests.contract.pairs import PAIRS
from tests.local.hub import add_to_cache
from tests.local.onnx_backend import onnx_models
from tests.local.onnx_backend.conftest import Exported


def test_it_computes_in_float32_whatever_the_processor_has(exported: Exported) -> None:
    """The default is bfloat16 where there is such a unit: logits would be off by 0.05."""
    graph = read_graph_file(exported("bert_reranker", "fp32") / "onnx" / "model.onnx")
    hint = OpenVino(graph)._ready()[0].get_property("INFERENCE_PRECISION_HINT")
    assert hint.get_type_name() == "f32"


def test_the_plan_says_that_int8_may_be_slower_here(exported: Exported) -> None:
    slow = "  - int8: on one machine slower than float32 here; bge-rerank doctor --race times both"
    for dtype in ("fp32", "int8"):
        plan = load_scorer(str(exported("bert_reranker", dtype)), backend="openvino").plan
        assert (slow in str(plan).splitlines()) == (dtype == "int8")


LOAD = """
import json, sys
from pathlib import Path
from bge_rerank_integrations import load_scorer
scores = load_scorer(sys.argv[1], backend="openvino").score([("a", "b")])
import openvino
print(json.dumps(["openvino_telemetry.main" in sys.modules, "openvino_telemetry" in sys.modules]))
"""


def test_nothing_is_told_to_its_makers_server(exported: Exported, tmp_path: Path) -> None:
    """Importing openvino sends an event and writes an identity into the home folder."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(exported("bert_reranker", "fp32"))],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "PATH": ""},
    )
    assert json.loads(done.stdout) == [False, False]
    assert [file.name for file in tmp_path.iterdir() if "intel" in file.name.lower()] == []


def test_weights_behind_links_are_found(exported: Exported, tmp_path: Path) -> None:
    """The hub's cache is made of links to files that are named by their contents."""
    folder = exported("reranker_base", "fp32")
    add_to_cache(tmp_path, "org/reranker", folder, commit="0" * 40, branch="main")
    expected = load_scorer(str(folder), backend="onnx").score(PAIRS)
    hub: dict[str, Any] = {"cache_dir": str(tmp_path), "local_files_only": True}
    before = {file.name for file in tmp_path.rglob("*")}
    found = load_scorer("org/reranker", backend="onnx", **hub).score(PAIRS)
    assert np.array_equal(found, expected)
    scorer = load_scorer("org/reranker", backend="openvino", **hub)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=1e-5, rtol=0)
    assert {file.name for file in tmp_path.rglob("*")} == before


def test_an_input_is_found_where_the_graph_gives_it_a_second_name(tmp_path: Path) -> None:
    """OpenVINO drops a Cast that changes nothing, and the ids have its name too."""
    file = read_graph_file(onnx_models.product_of_ids(tmp_path / "product.onnx", first=2))
    runtime = OpenVino(file)
    assert runtime.inputs == {"input_ids": "i64"}
    assert runtime.infer({"input_ids": np.array([[3, 4]])}, "logits").tolist() == [[12]]


STARVE = """
import re, resource, sys
from pathlib import Path
import numpy as np
from bge_rerank_integrations import OutOfMemoryError
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.options import BatchOptions
from bge_rerank_integrations.local.onnx_backend.encoder import GraphEncoder, GraphUse
from bge_rerank_integrations.local.onnx_backend.file import read_graph_file
from bge_rerank_integrations.local.onnx_backend.openvino import OpenVino
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
file = read_graph_file(Path(sys.argv[1]))
use = GraphUse("logit", vocabulary=9, padding=0, segments=True)
forward = GraphEncoder(OpenVino(file), file, use)
engine = Engine("product", lambda: "0", TextTokenizer(Path(sys.argv[2])), forward)
def sequence(*ids):
    return TokenSequence(np.array(ids, dtype=np.int32), 2)
assert engine.run([sequence(3, 4)], [0], BatchOptions()).tolist() == [[12]]
taken = re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
resource.setrlimit(resource.RLIMIT_AS, (int(taken) * 1024 + 2**30,) * 2)
try:
    engine.run([sequence(3, 4), sequence(2**15, 2**15)], [7, 8], BatchOptions())
except OutOfMemoryError as error:
    print(error)
print(engine.run([sequence(5, 6), sequence(2, 2)], [0, 1], BatchOptions()).tolist())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts memory as Linux does")
def test_memory_that_runs_out_costs_one_call(tmp_path: Path, bert_reranker: Path) -> None:
    """2**30 floats do not fit into what the process is allowed. OpenVINO stays broken after it."""
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx", first=2)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARVE, str(graph), str(bert_reranker)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, after = done.stdout.splitlines()
    assert said.startswith("the pair at position 8, of 2 tokens, does not fit into the memory")
    assert after == "[[30.0], [4.0]]"
