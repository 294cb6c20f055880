"""`export_onnx`: what it writes, measures, refuses, and leaves behind when it fails."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    ModelNotFound,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.local.onnx_backend.encoder import GraphEncoder, GraphUse
from bge_rerank_integrations.local.onnx_backend.file import read_graph_file
from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime
from bge_rerank_integrations.tools.doctor import GRID
from bge_rerank_integrations.tools.export import export_onnx, kendall_tau
from tests import tiny_models
from tests.contract.pairs import PAIRS
from tests.local.hub import add_to_cache
from tests.local.llm import tiny_llms
from tests.local.onnx_backend import onnx_models
from tests.local.onnx_backend.conftest import Exported
from tests.local.onnx_backend.test_onnx import random_sequences


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def listing(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def test_a_folder_is_whole_and_says_what_it_is(tmp_path: Path, reranker_base: Path) -> None:
    done = export_onnx(str(reranker_base), tmp_path / "deep" / "out")
    assert done.folder == tmp_path / "deep" / "out"
    assert listing(done.folder) == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
    }
    assert done.size == sum(f.stat().st_size for f in done.folder.rglob("*") if f.is_file())
    assert (done.dtype, done.scale, done.pairs) == ("fp32", "logit", len(GRID))
    assert done.difference < 1e-5
    assert done.tau == 1
    assert names_in(tmp_path / "deep") == ["out"]


def test_what_it_says_of_int8_is_what_comes_out(tmp_path: Path, bert_reranker: Path) -> None:
    done = export_onnx(str(bert_reranker), tmp_path / "out", dtype="int8")
    exact = load_scorer(str(bert_reranker), device="cpu", precision="fp32").score(GRID)
    found = load_scorer(str(done.folder), backend="onnx").score(GRID)
    assert done.difference == pytest.approx(np.abs(exact - found).max(), abs=1e-6)
    assert done.tau == pytest.approx(kendall_tau(exact.reshape(4, 8), found.reshape(4, 8)))
    assert 0.01 < done.difference < 0.5


def test_graphs_are_of_the_standard_alone(exported: Exported) -> None:
    """So that any runtime of ONNX can run them."""
    for dtype in ("fp32", "int8"):
        path = exported("bert_reranker", dtype) / "onnx" / "model.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path))
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert model.ir_version == 10
        assert {node.domain for node in model.graph.node} == {""}


def test_int8_weights_by_hand(exported: Exported, bert_reranker: Path) -> None:
    """No weight is off by more than half a step: one scale for each output, or row of the words."""
    model = onnx.load(str(exported("bert_reranker", "int8") / "onnx" / "model.onnx"))
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    places = [number for number, array in enumerate(arrays) if array.dtype == np.int8]
    weights = load_file(bert_reranker / "model.safetensors")

    words, scale = arrays[places[0]], arrays[places[0] + 1]
    exact = weights["bert.embeddings.word_embeddings.weight"].numpy()
    assert (np.abs(words).max(axis=1) == np.where(np.any(exact, axis=1), 127, 0)).all()
    assert scale.shape == (len(exact), 1)
    assert (np.abs(words * scale - exact) <= scale * 0.5001).all()

    whole, scale = arrays[places[1]], arrays[places[1] + 1]
    exact = weights["bert.encoder.layer.0.attention.self.query.weight"].numpy().T
    assert (np.abs(whole).max(axis=0) == 63).all()
    assert scale.shape == (32,)
    assert (np.abs(whole * scale - exact) <= scale * 0.5001).all()


def test_an_int8_file_has_a_byte_for_each_weight_of_words_and_layers(
    exported: Exported, reranker_base: Path
) -> None:
    graph = exported("reranker_base", "int8") / "onnx"
    shapes = {k: v.shape for k, v in load_file(reranker_base / "model.safetensors").items()}
    layers = (
        "word_embeddings.weight",
        "query.weight",
        "key.weight",
        "value.weight",
        "dense.weight",
    )
    rounded = {k for k in shapes if k.endswith(layers) and not k.startswith("classifier")}
    sizes = {k: math.prod(shape) * (1 if k in rounded else 4) for k, shape in shapes.items()}
    scales = 4 * sum(shapes[k][0] for k in rounded)
    file = (graph / "model.onnx_data").stat().st_size
    assert sum(sizes.values()) + scales <= file < 1.1 * (sum(sizes.values()) + scales)


def test_int8_is_as_near_as_onnx_runtimes_own_quantization(
    exported: Exported, bert_reranker: Path, tmp_path: Path
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    fp32, ours = (
        exported("bert_reranker", dtype) / "onnx" / "model.onnx" for dtype in ("fp32", "int8")
    )
    theirs = tmp_path / "theirs.onnx"
    quantize_dynamic(fp32, theirs, per_channel=True, reduce_range=True)
    use = GraphUse("logit", vocabulary=300, padding=0, segments=True)
    rows = []
    for path in (fp32, ours, theirs):
        file = read_graph_file(path)
        rows.append(GraphEncoder(OnnxRuntime(file), file, use).run(random_sequences()))
    off_ours, off_theirs = (np.abs(row - rows[0]).mean() for row in rows[1:])
    assert off_ours < 1.5 * off_theirs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_are_written_as_the_numbers_they_are(
    dtype: str, tmp_path: Path, reranker_base: Path
) -> None:
    folder = Path(shutil.copytree(reranker_base, tmp_path / "half"))
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    done = export_onnx(str(folder), tmp_path / "out")
    assert done.difference < 1e-5
    assert read_graph_file(done.folder / "onnx" / "model.onnx").number_format == "fp32"


def test_an_embedders_instruction_outlives_its_id(tmp_path: Path, bge_embedder: Path) -> None:
    cache = tmp_path / "cache"
    add_to_cache(cache, "BAAI/bge-base-en-v1.5", bge_embedder, commit="0" * 40, branch="main")
    hub: dict[str, Any] = {"cache_dir": str(cache), "local_files_only": True}
    done = export_onnx("BAAI/bge-base-en-v1.5", tmp_path / "out", **hub)
    assert (done.scale, done.difference < 1e-6) == ("cosine", True)
    expected = load_scorer("BAAI/bge-base-en-v1.5", device="cpu", **hub).score(PAIRS)
    found = load_scorer(str(done.folder), backend="onnx")
    np.testing.assert_allclose(found.score(PAIRS), expected, atol=1e-5, rtol=0)
    assert "Represent this sentence for searching relevant passages: " in found.name
    plain = load_scorer(str(done.folder), backend="onnx", query_instruction="").score(PAIRS)
    assert np.abs(plain - expected).max() > 0.01


def test_a_folder_that_exists_is_replaced_only_if_asked_and_only_if_an_export(
    tmp_path: Path, reranker_base: Path, bert_reranker: Path
) -> None:
    out = export_onnx(str(reranker_base), tmp_path / "out").folder
    before = {name: (out / name).read_bytes() for name in listing(out)}
    with pytest.raises(InvalidInputError, match=r"out exists; choose another folder, or ask"):
        export_onnx(str(bert_reranker), out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"holds notes\.txt, so it is not an export fold"):
        export_onnx(str(bert_reranker), out, overwrite=True)
    (out / "notes.txt").unlink()
    assert {name: (out / name).read_bytes() for name in listing(out)} == before
    export_onnx(str(bert_reranker), out, overwrite=True)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["model_type"] == "bert"
    assert names_in(tmp_path) == ["out"]

    (tmp_path / "link").symlink_to(out)
    (tmp_path / "file").write_bytes(b"")
    for kept in ("link", "file"):
        with pytest.raises(InvalidInputError, match="is not an export folder"):
            export_onnx(str(bert_reranker), tmp_path / kept, overwrite=True)
    source = listing(bert_reranker)
    with pytest.raises(InvalidInputError, match="not an export folder"):
        export_onnx(str(bert_reranker), bert_reranker, overwrite=True)
    assert listing(bert_reranker) == source


def test_an_embedders_export_is_replaced_with_its_modules(
    tmp_path: Path, mean_embedder: Path
) -> None:
    """Its settings lie in folders, such as 1_Pooling."""
    out = export_onnx(str(mean_embedder), tmp_path / "out").folder
    before = listing(out)
    assert any("/config.json" in name for name in before)
    export_onnx(str(mean_embedder), out, overwrite=True)
    assert listing(out) == before


@pytest.mark.parametrize("kind", ["missing_head", "truncated_weights", "no_tokenizer"])
def test_nothing_is_left_of_a_failure(kind: str, damaged: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        export_onnx(str(damaged(kind)), tmp_path / "out")
    assert names_in(tmp_path) == []


def test_a_graph_off_torch_is_not_written(tmp_path: Path) -> None:
    """NaN weights: neither torch nor the graph gives a score."""
    source = tiny_models.DAMAGED["nan_weights"](tmp_path / "source")
    with pytest.raises(Exception, match="gives nan in"):
        export_onnx(str(source), tmp_path / "out")
    assert names_in(tmp_path) == ["source"]


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    llm = tiny_llms.MODELS["gemma"](tmp_path / "llm")
    with pytest.raises(UnsupportedModel, match="only BERT and XLM-R encoders are, not an LLM"):
        export_onnx(str(llm), tmp_path / "out")
    with pytest.raises(ModelNotFound):
        export_onnx(str(tmp_path / "absent"), tmp_path / "out")
    with pytest.raises(InvalidInputError, match="dtype is 'fp8'; it must be one of fp32, int8"):
        export_onnx(str(llm), tmp_path / "out", dtype="fp8")  # type: ignore[arg-type]


def test_kendalls_tau_by_hand() -> None:
    expected = np.array([[3, 2, 1], [1, 1, 2]], dtype=np.float32)
    assert kendall_tau(expected, expected) == 1
    assert kendall_tau(expected, -expected) == -1
    # 2 of 3 pairs in order, 1 not: 1/3; of the second row 2 pairs are told apart, both in order
    found = np.array([[2, 3, 1], [5, 7, 9]], dtype=np.float32)
    assert kendall_tau(expected, found) == pytest.approx((1 / 3 + 1) / 2)


def test_a_graph_of_many_rows_agrees_with_transformers(
    exported: Exported, bert_reranker: Path
) -> None:
    """The exported graph and one that was traced, run by nothing but ONNX Runtime, padded."""
    path = exported("bert_reranker", "fp32") / "onnx" / "model.onnx"
    session = onnx_models.session_of(path)
    random = np.random.default_rng(3)
    ids = random.integers(5, 300, (4, 20))
    mask = np.arange(20)[None] < np.array([[20], [3], [11], [1]])
    feed = {
        "input_ids": ids * mask,
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": (np.arange(20)[None] > 5).astype(np.int64) * mask,
    }
    model = onnx_models.load_torch(bert_reranker, "logits")
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()}
        expected = model(**tensors).logits.numpy()
    np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, atol=1e-5)
