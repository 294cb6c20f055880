"""What is read off an ONNX file before a runtime opens it, against the `onnx` package."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from bge_rerank_integrations import CheckpointError, load_scorer
from bge_rerank_integrations.local.onnx_backend.file import FIELDS, read_graph_file
from bge_rerank_integrations.types import GraphFormat
from tests.local.onnx_backend import onnx_models
from tests.local.onnx_backend.conftest import Exported

MESSAGES = {
    "model": "ModelProto",
    "training": "TrainingInfoProto",
    "function": "FunctionProto",
    "graph": "GraphProto",
    "node": "NodeProto",
    "attribute": "AttributeProto",
    "tensor": "TensorProto",
    "sparse": "SparseTensorProto",
    "external": "StringStringEntryProto",
}


def test_every_message_that_can_hold_a_tensor_is_walked() -> None:
    """All fields of these kinds that the `onnx` package knows; metadata holds no weights."""
    kinds = {name: kind for kind, name in MESSAGES.items()}
    found = {
        (kind, field.number): kinds[field.message_type.name]
        for kind, name in MESSAGES.items()
        for field in getattr(onnx, name).DESCRIPTOR.fields
        if field.message_type is not None
        and field.message_type.name in kinds
        and not field.name.endswith(("metadata_props", "_binding"))
    }
    assert found == FIELDS


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_an_export_is_read_as_onnx_reads_it(dtype: GraphFormat, exported: Exported) -> None:
    path = exported("reranker_base", dtype) / "onnx" / "model.onnx"
    file = read_graph_file(path)
    model = onnx.load(str(path), load_external_data=False)
    tables = {t.dims[0] for t in model.graph.initializer if len(t.dims) == 2}
    assert file.tables == tables
    assert {514, 32} <= file.tables
    assert (file.number_format, file.quantized) == (dtype, dtype == "int8")
    assert file.files == (path, path.parent / "model.onnx_data")


def test_graphs_of_other_tools(tmp_path: Path, bert_reranker: Path) -> None:
    traced = onnx_models.export(bert_reranker, tmp_path / "traced.onnx", "logits")
    assert read_graph_file(traced).number_format == "fp32"
    assert read_graph_file(traced).files == (traced,)
    assert {512, 2} <= read_graph_file(traced).tables
    int8 = onnx_models.quantize(traced, tmp_path / "int8.onnx")
    assert read_graph_file(int8).number_format == "int8"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (TensorProto.FLOAT, "fp32"),
        (TensorProto.FLOAT16, "fp16"),
        (TensorProto.BFLOAT16, "bf16"),
    ],
)
def test_the_format_is_that_of_the_matrices(tmp_path: Path, kind: int, said: str) -> None:
    matrix = helper.make_tensor("matrix", kind, [2, 2], [1, 2, 3, 4])
    vector = helper.make_tensor("vector", TensorProto.FLOAT, [2], [1, 2])
    assert read_graph_file(saved(tmp_path, [matrix, vector])).number_format == said


def test_four_bits_are_told_from_eight(tmp_path: Path) -> None:
    matrix = helper.make_tensor("matrix", TensorProto.INT4, [2, 2], [1, 2, 3, 4])
    node = helper.make_node("DequantizeLinear", ["matrix", "scale"], ["out"])
    assert read_graph_file(saved(tmp_path, [matrix], node)).number_format == "int4"


def saved(folder: Path, tensors: list[Any], *nodes: Any) -> Path:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "graph", [], [value], tensors)
    model = helper.make_model(graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def outside(location: str) -> Any:
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "weight")
    set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "sub/weights",
        "..",
        ".",
        "",
        "C:weights",
        "..\\secret",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_weights_are_never_read_from_elsewhere(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match="only a file next to the graph is ever read"):
        read_graph_file(saved(folder, [outside(location)]))


@pytest.mark.parametrize("place", ["attribute", "subgraph", "function", "sparse"])
def test_nor_from_where_a_tensor_is_hidden(tmp_path: Path, place: str) -> None:
    hidden = outside("../secret")
    constant = helper.make_node("Constant", [], ["out"], value=hidden)
    path = saved(tmp_path, [], constant)
    model = onnx.load(str(path), load_external_data=False)
    if place == "subgraph":
        inner = helper.make_graph([constant], "inner", [], [])
        branch = helper.make_node("If", ["condition"], ["out"], then_branch=inner)
        model = onnx.load(str(saved(tmp_path, [], branch)), load_external_data=False)
    elif place == "function":
        model.ClearField("graph")
        opset = helper.make_opsetid("", 17)
        model.functions.append(helper.make_function("x", "f", [], ["out"], [constant], [opset]))
    elif place == "sparse":
        del model.graph.node[:]
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(hidden)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"in '\.\./secret'; only a file next to"):
        read_graph_file(path)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="has its weights in weights, which is not next to it"
    ):
        read_graph_file(saved(tmp_path, [outside("weights")]))


def test_a_scorer_refuses_such_a_graph(exported: Exported, tmp_path: Path) -> None:
    source = exported("bert_reranker", "fp32")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((source / file).read_bytes())
    graph = (source / "onnx" / "model.onnx").read_bytes()
    moved = graph.replace(b"model.onnx_data", b"../weights.data")
    assert moved != graph
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(moved)
    (tmp_path / "weights.data").write_bytes((source / "onnx" / "model.onnx_data").read_bytes())
    with pytest.raises(CheckpointError, match=r"\.\./weights\.data"):
        load_scorer(str(tmp_path), backend="onnx")


def test_graphs_in_graphs_without_end_are_damage(tmp_path: Path) -> None:
    """A node whose attribute is a graph, whose node has an attribute that is a graph, and so on."""

    def field(number: int, content: bytes) -> bytes:
        length, written = len(content), b""
        while length > 127:
            length, written = length >> 7, written + bytes([length & 127 | 128])
        return bytes([number << 3 | 2]) + written + bytes([length]) + content

    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(field(7, graph))
    with pytest.raises(CheckpointError, match="is not an ONNX file"):
        read_graph_file(tmp_path / "model.onnx")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_a_checkpoint_error_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes at all, and whole graphs with a few bytes changed or cut off."""
    whole = saved(tmp_path, [outside("model.onnx")]).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.one_of(
            st.binary(min_size=1, max_size=200),
            st.just(whole[: place + 1]),
            st.binary(max_size=4).map(lambda b: whole[:place] + b + whole[place + len(b) :]),
        )
    )
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damaged)
    with suppress(CheckpointError):
        assert {inside.parent for inside in read_graph_file(path).files} == {tmp_path}
