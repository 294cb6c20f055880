"""An encoder's weights written as an ONNX graph, in float32 or int8.

The graph is built of standard operators, without an exporter that traces a model: residuals,
LayerNorm and head are those of `encoder.py`. Weights go one by one into a file of their own: a
graph of more than 2 GB cannot be one file.

int8 is dynamic quantization: each matrix of a layer has one scale for each output, and its input is
quantized at each run (`DynamicQuantizeLinear`, `MatMulInteger` of the ONNX standard).
Embeddings, LayerNorm, attention products and the head stay in float32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from bge_rerank_integrations.base.models import Family
from bge_rerank_integrations.local.checkpoint import Checkpoint
from bge_rerank_integrations.local.device import Hardware, plan_device
from bge_rerank_integrations.local.model_config import EncoderConfig, read_encoder_config
from bge_rerank_integrations.local.torch_backend.encoder_weights import tensor_prefix
from bge_rerank_integrations.local.torch_backend.weights import Weights
from bge_rerank_integrations.types import GraphFormat

# ONNX Runtime 1.20 and OpenVINO 2025.0, the oldest releases that the extras allow, read these.
OPSET, IR_VERSION = 20, 10
# Seven bits of a weight's eight: two products of 8-bit inputs with larger weights do not fit into
# the 16 bits in which processors without VNNI add them, and would be cut off without a word.
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
LARGEST_INT8 = 63
# Far below any score of attention, and within the range of bfloat16 too.
MASKED = -1e30
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
GRAPH, DATA = "model.onnx", "model.onnx_data"
GRAPH_FILES = (f"onnx/{GRAPH}", f"onnx/{DATA}")


def write_graph(
    checkpoint: Checkpoint, folder: Path, family: Family, number_format: GraphFormat
) -> Path:
    """Write `model.onnx` and `model.onnx_data` into `folder`, and return the graph's path.

    Inputs are int64 [batch, tokens]: `input_ids`, `attention_mask`, and `token_type_ids`
    for a model that has token types.
    The output is `logits` [batch, 1] for a reranker, else `last_hidden_state`
    [batch, tokens, width]. Raises `CheckpointError` for weights that are missing or do not fit the
    config.
    """
    config = read_encoder_config(checkpoint.config)
    plan = plan_device(Hardware(cores=1), device="cpu", precision="fp32")
    weights = Weights(checkpoint, plan, tensor_prefix(checkpoint, config))
    head = Weights(checkpoint, plan)
    graph = folder / GRAPH
    with (folder / DATA).open("wb") as data:
        model = _EncoderGraph(config, weights, head, data, number_format).build(family)
    onnx.save(model, str(graph))
    onnx.checker.check_model(str(graph), full_check=True)
    return graph


class _EncoderGraph:
    """The nodes and weights so far; each method adds some and returns the name of its result."""

    def __init__(
        self,
        config: EncoderConfig,
        weights: Weights,
        head: Weights,
        data: BinaryIO,
        number_format: GraphFormat,
    ) -> None:
        self._config, self._weights, self._head_weights, self._data = config, weights, head, data
        self._quantized = number_format == "int8"
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._count = 0

    def build(self, family: Family) -> Any:
        config = self._config
        names = ["input_ids", "attention_mask"]
        types = self._weights.read("embeddings.token_type_embeddings.weight").numpy()
        if len(types) > 1:
            names.append("token_type_ids")
        x = self._embed(types, with_types=len(names) == 3)
        seen = self._op("Cast", ["attention_mask"], to=TensorProto.BOOL)
        seen = self._op("Unsqueeze", [seen, self._small([1, 2])])
        zero, masked = self._small(0.0), self._small(MASKED)
        bias = self._op("Where", [seen, zero, masked])
        for number in range(config.layers):
            last = family is Family.ENCODER and number == config.layers - 1
            x = self._layer(f"encoder.layer.{number}.", x, bias, first_token_only=last)
        shape: list[str | int | None]
        if family is Family.ENCODER:
            result, shape = self._head(x, "logits"), ["batch", 1]
        else:
            result = self._op("Identity", [x], result="last_hidden_state")
            shape = ["batch", "tokens", config.hidden]
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [
                helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"])
                for n in names
            ],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, shape)],
            self._tensors,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bge-rerank-integrations",
        )

    def _embed(self, types: np.ndarray[Any, Any], *, with_types: bool) -> str:
        config = self._config
        x = self._op("Gather", [self._read("embeddings.word_embeddings.weight"), "input_ids"])
        table = self._read("embeddings.position_embeddings.weight")
        if config.offset_positions:
            real = self._op("Equal", ["input_ids", self._small(config.pad)])
            real = self._op("Cast", [self._op("Not", [real])], to=TensorProto.INT64)
            places = self._op("CumSum", [real, self._small(1)])
            places = self._op("Mul", [places, real])
            places = self._op("Add", [places, self._small(config.pad)])
            positions = self._op("Gather", [table, places])
        else:
            length = self._op("Shape", ["input_ids"], start=1, end=2)
            positions = self._op("Slice", [table, self._small([0]), length])
        x = self._op("Add", [x, positions])
        if with_types:
            kinds = self._op("Gather", [self._store(types), "token_type_ids"])
        else:
            kinds = self._store(types[0])
        return self._norm("embeddings.LayerNorm", self._op("Add", [x, kinds]))

    def _layer(self, prefix: str, x: str, bias: str, *, first_token_only: bool) -> str:
        asking = x
        if first_token_only:
            # the only one whose row is read: keys and values of all, a query of this one alone
            asking = self._op("Slice", [x, *map(self._small, ([0], [1], [1]))])
        size = self._config.hidden // self._config.heads
        heads = self._small([0, 0, self._config.heads, size])

        def split(name: str, given: str, perm: Sequence[int]) -> str:
            wide = self._linear(f"{prefix}attention.self.{name}", given)
            return self._op("Transpose", [self._op("Reshape", [wide, heads])], perm=perm)

        query = split("query", asking, (0, 2, 1, 3))
        key = split("key", x, (0, 2, 3, 1))
        value = split("value", x, (0, 2, 1, 3))
        scores = self._op("MatMul", [query, key])
        scores = self._op("Mul", [scores, self._small(float(size**-0.5))])
        shares = self._op("Softmax", [self._op("Add", [scores, bias])], axis=-1)
        mixed = self._op("Transpose", [self._op("MatMul", [shares, value])], perm=(0, 2, 1, 3))
        mixed = self._op("Reshape", [mixed, self._small([0, 0, self._config.hidden])])
        mixed = self._linear(f"{prefix}attention.output.dense", mixed)
        x = self._norm(f"{prefix}attention.output.LayerNorm", self._op("Add", [mixed, asking]))
        name, options = ACTIVATIONS[self._config.activation]
        inner = self._op(name, [self._linear(f"{prefix}intermediate.dense", x)], **options)
        inner = self._linear(f"{prefix}output.dense", inner)
        return self._norm(f"{prefix}output.LayerNorm", self._op("Add", [inner, x]))

    def _head(self, x: str, result: str) -> str:
        names = ("classifier.dense", "classifier.out_proj")
        if self._config.model_type == "bert":
            names = (f"{self._weights.prefix}pooler.dense", "classifier")
        # a checkpoint without layers has all tokens here still
        x = self._op("Gather", [x, self._small(0)], axis=1)
        for name, activation in zip(names, ("Tanh", "Identity"), strict=True):
            last = {"result": result} if activation == "Identity" else {}
            x = self._op(activation, [self._plain(name, x, self._head_weights)], **last)
        return x

    def _linear(self, name: str, x: str) -> str:
        return self._int8(name, x) if self._quantized else self._plain(name, x, self._weights)

    def _plain(self, name: str, x: str, weights: Weights) -> str:
        weight, bias = self._matrix(name, weights)
        product = self._op("MatMul", [x, self._store(weight)])
        return self._op("Add", [product, self._store(bias)])

    def _int8(self, name: str, x: str) -> str:
        weight, bias = self._matrix(name, self._weights)
        scale = np.abs(weight).max(axis=0) / np.float32(LARGEST_INT8)
        scale[scale == 0] = 1  # an output of zeros alone stays one
        whole = np.rint(weight / scale).astype(np.int8)
        given, given_scale, given_zero = self._ops("DynamicQuantizeLinear", [x], 3)
        product = self._op("MatMulInteger", [given, self._store(whole), given_zero])
        scales = self._op("Mul", [given_scale, self._store(scale)])
        product = self._op("Cast", [product], to=TensorProto.FLOAT)
        return self._op("Add", [self._op("Mul", [product, scales]), self._store(bias)])

    def _norm(self, name: str, x: str) -> str:
        tables = [self._read(f"{name}.weight"), self._read(f"{name}.bias")]
        return self._op("LayerNormalization", [x, *tables], epsilon=self._config.eps)

    def _matrix(self, name: str, weights: Weights) -> tuple[np.ndarray[Any, Any], Any]:
        """A layer's weight as [inputs, outputs], and its bias."""
        weight = weights.read(f"{name}.weight").numpy().T
        return np.ascontiguousarray(weight), weights.read(f"{name}.bias").numpy()

    def _read(self, name: str) -> str:
        return self._store(self._weights.read(name).numpy())

    def _store(self, array: np.ndarray[Any, Any]) -> str:
        """Append an array to the file of weights."""
        tensor = TensorProto()
        tensor.name = f"weight.{len(self._tensors)}"
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend(array.shape)
        # at a page, as the ONNX standard requires for mapped data; small arrays are read anyway
        step = 4096 if array.nbytes >= 2**16 else 64
        self._data.write(bytes(-self._data.tell() % step))
        tensor.raw_data = b""
        set_external_data(tensor, DATA, offset=self._data.tell(), length=array.nbytes)
        tensor.ClearField("raw_data")
        self._data.write(np.ascontiguousarray(array).data)
        self._tensors.append(tensor)
        return str(tensor.name)

    def _small(self, value: float | list[int]) -> str:
        kind = np.float32 if isinstance(value, float) else np.int64
        name = f"constant.{len(self._tensors)}"
        self._tensors.append(onnx.numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def _op(self, operator: str, inputs: list[str], *, result: str = "", **options: Any) -> str:
        return self._ops(operator, inputs, 1, result=result, **options)[0]

    def _ops(
        self, operator: str, inputs: list[str], outputs: int, *, result: str = "", **options: Any
    ) -> list[str]:
        self._count += 1
        names = [result] if result else [f"{operator}.{self._count}.{n}" for n in range(outputs)]
        self._nodes.append(
            helper.make_node(operator, inputs, names, f"{operator}.{self._count}", **options)
        )
        return names
