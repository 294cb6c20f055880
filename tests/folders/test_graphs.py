"""Folders with ONNX and OpenVINO graphs, as optimum, transformers.js and others lay them out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper, numpy_helper

from bge_rerank_integrations import (
    CheckpointError,
    InvalidInputError,
    UnsupportedModel,
    load_scorer,
)
from bge_rerank_integrations.local.onnx_backend.file import read_graph_file
from bge_rerank_integrations.local.onnx_backend.load import downloaded
from bge_rerank_integrations.types import Backend, FloatArray, Pair
from tests import tiny_models
from tests.local.onnx_backend import onnx_models

BACKENDS: tuple[Backend, ...] = ("onnx", "openvino")
PAIRS: list[Pair] = [
    ("what is a panda?", "The giant panda is a bear that lives in the mountains of China."),
    ("what is a panda?", "hi"),
    ("how many people live in Berlin?", "About 3,520,031 people."),
]
Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker of transformers, with its graph as `traced.onnx`."""
    folder = tiny_models.build_bert_reranker(tmp_path_factory.mktemp("source"))
    onnx_models.export(folder, folder / "traced.onnx", "logits")
    return folder


@pytest.fixture(scope="module")
def expected(source: Path) -> FloatArray:
    return load_scorer(str(source), device="cpu", precision="fp32").score(PAIRS)


def put(
    source: Path, folder: Path, name: str, change: Change | None = None, *, data: str = ""
) -> Path:
    """The reranker's config and tokenizer, and its graph under this name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder)
    graph = onnx.load(str(source / "traced.onnx"))
    if change:
        change(graph)
    onnx.save(
        graph,
        str(folder / name),
        save_as_external_data=bool(data),
        location=data or None,
        size_threshold=64,
    )
    return folder


def put_openvino(source: Path, folder: Path, name: str, *, half: bool = False) -> Path:
    put(source, folder, "unused.onnx")
    (folder / "unused.onnx").unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    graph = openvino.Core().read_model(source / "traced.onnx")
    openvino.save_model(graph, folder / name, compress_to_fp16=half)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.onnx", ""),
        ("onnx/model.onnx", "model.onnx_data"),
        ("onnx/model.onnx", "weights.bin"),
        ("onnx/model_O3.onnx", "model_O3.onnx.data"),
        ("onnx/model_quantized.onnx", ""),
        ("model_fp16.onnx", ""),
        ("other/reranker.onnx", ""),
    ],
)
def test_the_only_graph_is_found(
    backend: Backend, name: str, data: str, source: Path, expected: FloatArray, tmp_path: Path
) -> None:
    folder = str(put(source, tmp_path, name, data=data))
    scorer = load_scorer(folder, backend=backend, device="cpu")
    np.testing.assert_allclose(scorer.score(PAIRS), expected, atol=2e-5, rtol=0)
    assert f"  - graph {name}\n" in str(scorer.plan)
    by_name = load_scorer(folder, backend=backend, device="cpu", file_name=name)
    assert by_name.name == scorer.name


def test_one_of_several_is_chosen_by_its_name(
    source: Path, expected: FloatArray, tmp_path: Path
) -> None:
    put(source, tmp_path, "onnx/model_O3.onnx")
    onnx_models.quantize(source / "traced.onnx", tmp_path / "onnx" / "model_quantized.onnx")
    with pytest.raises(
        CheckpointError, match=r"several graphs.*by file_name, of onnx/model_O3\.onnx, onnx/model_q"
    ):
        load_scorer(str(tmp_path), backend="onnx")
    scorers = [
        load_scorer(str(tmp_path), device="cpu", file_name=name)
        for name in ("model_O3.onnx", "onnx/model_quantized.onnx")
    ]
    np.testing.assert_allclose(scorers[0].score(PAIRS), expected, atol=2e-5, rtol=0)
    assert 1e-3 < np.abs(scorers[1].score(PAIRS) - expected).max() < 0.5
    assert [scorer.plan.precision for scorer in scorers] == ["fp32", "int8"]
    assert scorers[0].name != scorers[1].name
    assert "backend onnx: file_name is a graph" in str(scorers[0].plan)
    # with a graph of the usual name there is nothing to choose
    put(source, tmp_path, "onnx/model.onnx")
    plan = load_scorer(str(tmp_path), backend="onnx", device="cpu").plan
    assert "graph onnx/model.onnx" in str(plan)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("openvino/openvino_model.xml", False),
        ("openvino_model.xml", False),
        ("openvino/openvino_model_qint8_quantized.xml", False),
        ("openvino/openvino_model.xml", True),
    ],
)
def test_openvino_folders_of_optimum(
    name: str, half: bool, source: Path, expected: FloatArray, tmp_path: Path
) -> None:
    folder = str(put_openvino(source, tmp_path, name, half=half))
    scorer = load_scorer(folder, backend="openvino")
    found = scorer.score(PAIRS)
    assert scorer.plan.precision == ("fp16-openvino" if half else "fp32-openvino")
    np.testing.assert_allclose(found, expected, atol=1e-2 if half else 2e-5, rtol=0)
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    np.testing.assert_allclose(found, alone, atol=2e-5, rtol=0)
    by_name = load_scorer(folder, device="cpu", file_name=Path(name).name)
    assert by_name.name == scorer.name
    with pytest.raises(CheckpointError, match=r"no onnx/model\.onnx or model\.onnx"):
        load_scorer(folder, backend="onnx")
    with pytest.raises(CheckpointError, match="run that with backend='openvino'"):
        load_scorer(folder, backend="torch")


def test_weights_of_an_openvino_graph_are_in_the_name(source: Path, tmp_path: Path) -> None:
    put_openvino(source, tmp_path, "openvino/openvino_model.xml")
    name = load_scorer(str(tmp_path), backend="openvino").name
    weights = tmp_path / "openvino" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert load_scorer(str(tmp_path), backend="openvino").name != name
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"its weights in openvino_model\.bin, which"):
        load_scorer(str(tmp_path), backend="openvino")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"file_name": "model_O4.onnx"}, r"no such graph; its graphs: model.onnx, onnx/model.onnx"),
        ({"file_name": "model.onnx"}, "has it in two folders"),
        ({"file_name": "../model.onnx"}, "must be the name of a .onnx file in the model's folder"),
        ({"file_name": "/model.onnx"}, "must be the name of a .onnx file"),
        ({"file_name": "onnx/*.onnx"}, "must be the name of a .onnx file"),
        ({"file_name": "a.xml", "backend": "onnx"}, "must be the name of a .onnx file"),
        ({"file_name": "model.bin", "backend": "openvino"}, "a .onnx or .xml file"),
        ({"file_name": "model.onnx", "backend": "torch"}, "on backend 'torch' has none"),
    ],
)
def test_names_of_no_graph(
    options: dict[str, Any], said: str, source: Path, tmp_path: Path
) -> None:
    put(source, tmp_path, "onnx/model.onnx")
    put(source, tmp_path, "model.onnx")
    with pytest.raises(InvalidInputError, match=said):
        load_scorer(str(tmp_path), **options)
    with pytest.raises(InvalidInputError, match="file_name is"):
        load_scorer("offline", file_name="model.onnx")


def ends_in(*operators: str) -> Change:
    """A change that puts operators of one input behind the logits."""

    def change(model: Any) -> None:
        output = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = [f"{o}.0" if o == output else o for o in node.output]
        for number, operator in enumerate(operators):
            last = output if number + 1 == len(operators) else f"{output}.{number + 1}"
            model.graph.node.append(helper.make_node(operator, [f"{output}.{number}"], [last]))

    return change


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "operators", [("Sigmoid",), ("Sigmoid", "Identity"), ("Softmax",), ("Tanh", "Relu")]
)
def test_a_graph_that_gives_no_logits_is_refused(
    backend: Backend, operators: tuple[str, ...], source: Path, tmp_path: Path
) -> None:
    put(source, tmp_path, "model.onnx", ends_in(*operators))
    with pytest.raises(UnsupportedModel, match=r"ends in (Sigmoid|Softmax|Relu), so it gives no"):
        load_scorer(str(tmp_path), backend=backend)


def spelt_out(model: Any) -> None:
    """A change that ends the graph in 1 / (1 + exp(-logit))."""
    ends_in("Neg", "Exp", "Add", "Div")(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
    model.graph.node[-2].input.insert(0, "one")
    model.graph.node[-1].input.insert(0, "one")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sigmoid_that_is_spelt_out_is_refused(
    backend: Backend, source: Path, tmp_path: Path
) -> None:
    put(source, tmp_path, "model.onnx", spelt_out)
    with pytest.raises(UnsupportedModel, match="ends in Exp, so it gives no logits"):
        load_scorer(str(tmp_path), backend=backend)
    if backend == "openvino":
        graph = openvino.Core().read_model(tmp_path / "model.onnx")
        openvino.save_model(graph, tmp_path / "openvino_model.xml")
        with pytest.raises(UnsupportedModel, match=r"openvino_model\.xml ends in Exp"):
            load_scorer(str(tmp_path), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(0, 4), (1, 128)], ids=["batch", "length"])
def test_a_graph_of_one_batch_size_or_length_is_refused(
    backend: Backend, size: tuple[int, int], source: Path, tmp_path: Path
) -> None:
    def fix(model: Any) -> None:
        for given in model.graph.input:
            given.type.tensor_type.shape.dim[size[0]].dim_value = size[1]

    put(source, tmp_path, "model.onnx", fix)
    with pytest.raises(CheckpointError, match=f"one batch size or length .*{size[1]}"):
        load_scorer(str(tmp_path), backend=backend)


def test_an_openvino_graph_that_gives_no_logits_is_refused(source: Path, tmp_path: Path) -> None:
    put(source, tmp_path, "model.onnx", ends_in("Sigmoid", "Identity"))
    graph = openvino.Core().read_model(tmp_path / "model.onnx")
    openvino.save_model(graph, tmp_path / "openvino_model.xml")
    with pytest.raises(UnsupportedModel, match=r"openvino_model\.xml ends in Sigmoid"):
        load_scorer(str(tmp_path), backend="openvino")


def sized(*sizes: int | str) -> Change:
    """A change that declares the output's sizes."""

    def change(model: Any) -> None:
        shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)
        model.graph.output[0].type.CopyFrom(shape.type)

    return change


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [("batch", "labels"), ("batch", 1), (1, 1)])
def test_outputs_of_open_sizes(
    backend: Backend, sizes: tuple[int | str, ...], source: Path, expected: FloatArray,
    tmp_path: Path,
) -> None:  # fmt: skip
    put(source, tmp_path, "model.onnx", sized(*sizes))
    found = load_scorer(str(tmp_path), backend=backend, device="cpu").score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


def two_labels(model: Any) -> None:
    """Two copies of the logit beside each other, in an output of open sizes."""
    ends_in("Identity")(model)
    output = model.graph.output[0].name
    model.graph.node[-1].CopyFrom(helper.make_node("Concat", [f"{output}.0"] * 2, [output], axis=1))
    sized("batch", "labels")(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_of_more_labels_than_its_config(
    backend: Backend, source: Path, tmp_path: Path
) -> None:
    put(source, tmp_path, "model.onnx", two_labels)
    with pytest.raises(
        (UnsupportedModel, CheckpointError),
        match=r"needs one output of shape \[batch, 1\]|config\.json says that the model has one",
    ):
        load_scorer(str(tmp_path), backend=backend)


def test_what_an_openvino_file_says(source: Path, tmp_path: Path) -> None:
    put_openvino(source, tmp_path, "openvino_model.xml")
    path = tmp_path / "openvino_model.xml"
    file = read_graph_file(path)
    assert {512, 2} <= file.tables
    assert file.files == (path, tmp_path / "openvino_model.bin")
    text = path.read_text(encoding="utf-8")
    for before, after, said in [
        ('element_type="f32" shape="512, 32"', 'element_type="i8" shape="512, 32"', "int8"),
        ('element_type="f32" shape="512, 32"', 'element_type="u4" shape="512, 32"', "int4"),
        ('type="MatMul"', 'type="FakeQuantize"', "int8"),
    ]:
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")
        assert read_graph_file(path).number_format == said
    path.write_text(f'<!DOCTYPE net [<!ENTITY a "b">]>{text}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="declares a document type"):
        read_graph_file(path)
    path.write_text(text[:-40], encoding="utf-8")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read_graph_file(path)


def test_only_the_named_graph_and_its_weights_are_fetched() -> None:
    names = set(downloaded(("onnx/model_O3.onnx",))) - set(downloaded(()))
    assert all(name.startswith("onnx/model_O3.onnx") for name in names)
    assert set(downloaded(("a.xml",))) - set(downloaded(())) == {"a.xml", "a.bin"}
