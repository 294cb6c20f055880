"""An encoder's weights written as an ONNX graph, in float32 or int8.

The graph is built of standard operators, without an exporter that traces a model: residuals,
LayerNorm and head are those of `encoder.py`. Weights go one by one into a file of their own: a
graph of more than 2 GB cannot be one file.

int8 is dynamic quantization: each matrix of a layer has one scale for each output, and its input is
quantized at each run (`DynamicQuantizeLinear`, `MatMulInteger` of the ONNX standard). The word
embeddings have one scale for each row; only the rows of a text become float32. The other
embeddings, LayerNorm, attention products and the head stay in float32.
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
from bge_rerank_integrations.local.model_config import read_encoder_config
from bge_rerank_integrations.local.torch_backend.encoder_weights import tensor_prefix
from bge_rerank_integrations.local.torch_backend.weights import Weights
from bge_rerank_integrations.types import GraphFormat

# ONNX Runtime 1.20 and OpenVINO 2025.0, the oldest releases that the extras allow, read these.
OPSET, IR_VERSION = 20, 10
# Seven bits of a weight's eight: two products of 8-bit inputs with larger weights do not fit into
# the 16 bits in which processors without VNNI add them, and would be cut off silently.
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
LARGEST_FACTOR = 63
# Far below any score of attention, and within the range of bfloat16 too.
MASKED = -1e30
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
Array = np.ndarray[Any, Any]
Input = str | float | list[int] | Array

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
    graph = folder / GRAPH
    with (folder / DATA).open("wb") as data:
        model = _EncoderGraph(checkpoint, data, quantized=number_format == "int8").build(family)
    onnx.save(model, str(graph))
    onnx.checker.check_model(str(graph), full_check=True)
    return graph


class _EncoderGraph:
    """The nodes and weights so far; each method adds some and returns the name of its result."""

    def __init__(self, checkpoint: Checkpoint, data: BinaryIO, *, quantized: bool) -> None:
        self._config = read_encoder_config(checkpoint.config)
        self._prefix = tensor_prefix(checkpoint, self._config)
        plan = plan_device(Hardware(cores=1), device="cpu", precision="fp32")
        self._weights = Weights(checkpoint, plan)
        self._data, self._quantized = data, quantized
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def build(self, family: Family) -> Any:
        config = self._config
        inputs = ["input_ids", "attention_mask"]
        if config.types > 1:
            inputs.append("token_type_ids")
        x = self._embed()
        seen = self._op("Cast", "attention_mask", to=TensorProto.BOOL)
        bias = self._op("Where", self._op("Unsqueeze", seen, [1, 2]), 0.0, MASKED)
        for number in range(config.layers):
            last = family is Family.ENCODER and number == config.layers - 1
            x = self._layer(f"{self._prefix}encoder.layer.{number}.", x, bias, first_only=last)
        shape: list[str | int | None] = ["batch", "tokens", config.hidden]
        if family is Family.ENCODER:
            result, shape = self._head(x), ["batch", 1]
        else:
            result = self._op("Identity", x, result="last_hidden_state")
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [value(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
            [value(result, TensorProto.FLOAT, shape)],
            self._tensors,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="bge-rerank-integrations",
        )

    def _embed(self) -> str:
        config, tables = self._config, f"{self._prefix}embeddings."
        x = self._words(f"{tables}word_embeddings.weight")
        table = self._read(f"{tables}position_embeddings.weight")
        if config.offset_positions:
            real = self._op("Not", self._op("Equal", "input_ids", config.pad))
            real = self._op("Cast", real, to=TensorProto.INT64)
            places = self._op("Mul", self._op("CumSum", real, 1), real)
            positions = self._op("Gather", table, self._op("Add", places, config.pad))
        else:
            length = self._op("Shape", "input_ids", start=1, end=2)
            positions = self._op("Slice", table, [0], length)
        types = self._read(f"{tables}token_type_embeddings.weight")
        kinds = self._op("Gather", types, "token_type_ids") if config.types > 1 else types[0]
        x = self._op("Add", self._op("Add", x, positions), kinds)
        return self._norm(f"{tables}LayerNorm", x)

    def _words(self, name: str) -> str:
        """The rows of the ids; a quantized table has a scale for each of its rows."""
        table = self._read(name)
        if not self._quantized:
            return self._op("Gather", table, "input_ids")
        whole, scale = _rounded(table, axis=1, largest=127)
        rows = self._op("Cast", self._op("Gather", whole, "input_ids"), to=TensorProto.FLOAT)
        return self._op("Mul", rows, self._op("Gather", scale, "input_ids"))

    def _layer(self, prefix: str, x: str, bias: str, *, first_only: bool) -> str:
        # the last layer of a reranker: keys and values of all tokens, a query of the first alone
        asking = self._op("Slice", x, [0], [1], [1]) if first_only else x
        heads, size = self._config.heads, self._config.hidden // self._config.heads

        def split(name: str, given: str, perm: Sequence[int]) -> str:
            wide = self._linear(f"{prefix}attention.self.{name}", given)
            return self._op("Transpose", self._op("Reshape", wide, [0, 0, heads, size]), perm=perm)

        query = split("query", asking, (0, 2, 1, 3))
        key = split("key", x, (0, 2, 3, 1))
        value = split("value", x, (0, 2, 1, 3))
        scores = self._op("Mul", self._op("MatMul", query, key), float(size**-0.5))
        shares = self._op("Softmax", self._op("Add", scores, bias), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", shares, value), perm=(0, 2, 1, 3))
        mixed = self._op("Reshape", mixed, [0, 0, self._config.hidden])
        mixed = self._linear(f"{prefix}attention.output.dense", mixed)
        x = self._norm(f"{prefix}attention.output.LayerNorm", self._op("Add", mixed, asking))
        activation, options = ACTIVATIONS[self._config.activation]
        inner = self._linear(f"{prefix}intermediate.dense", x)
        inner = self._linear(f"{prefix}output.dense", self._op(activation, inner, **options))
        return self._norm(f"{prefix}output.LayerNorm", self._op("Add", inner, x))

    def _head(self, x: str) -> str:
        dense, out = "classifier.dense", "classifier.out_proj"
        if self._config.model_type == "bert":
            dense, out = f"{self._prefix}pooler.dense", "classifier"
        # a checkpoint without layers has all tokens here still
        first = self._op("Gather", x, 0, axis=1)
        first = self._op("Tanh", self._float_linear(dense, first))
        return self._float_linear(out, first, result="logits")

    def _linear(self, name: str, x: str) -> str:
        if not self._quantized:
            return self._float_linear(name, x)
        whole, scale = _rounded(self._matrix(name), axis=0, largest=LARGEST_FACTOR)
        given = self._op("DynamicQuantizeLinear", x, also=("scale", "zero_point"))
        product = self._op("MatMulInteger", given, whole, f"{given}.zero_point")
        product = self._op("Cast", product, to=TensorProto.FLOAT)
        product = self._op("Mul", product, self._op("Mul", f"{given}.scale", scale[0]))
        return self._op("Add", product, self._read(f"{name}.bias"))

    def _float_linear(self, name: str, x: str, result: str = "") -> str:
        product = self._op("MatMul", x, self._matrix(name))
        return self._op("Add", product, self._read(f"{name}.bias"), result=result)

    def _norm(self, name: str, x: str) -> str:
        weight, bias = (self._read(f"{name}.{part}") for part in ("weight", "bias"))
        return self._op("LayerNormalization", x, weight, bias, epsilon=self._config.eps)

    def _matrix(self, name: str) -> Array:
        """A layer's weight as [inputs, outputs]."""
        return np.ascontiguousarray(self._read(f"{name}.weight").T)

    def _read(self, name: str) -> Array:
        array: Array = self._weights.read(name).numpy()
        return array

    def _op(
        self, operator: str, *inputs: Input, result: str = "", also: Sequence[str] = (), **how: Any
    ) -> str:
        """Add a node; an output of `also` has the first one's name before its own."""
        name = f"{operator}.{len(self._nodes)}"
        outputs = [result or name, *(f"{name}.{other}" for other in also)]
        names = [given if isinstance(given, str) else self._constant(given) for given in inputs]
        self._nodes.append(helper.make_node(operator, names, outputs, name, **how))
        return outputs[0]

    def _constant(self, value: Array | float | list[int]) -> str:
        """A number or small shape inside the graph, or an array in the file of weights."""
        name = f"constant.{len(self._tensors)}"
        if not isinstance(value, np.ndarray):
            kind = np.float32 if isinstance(value, float) else np.int64
            tensor = onnx.numpy_helper.from_array(np.asarray(value, dtype=kind), name)
        else:
            tensor = TensorProto(name=name, dims=value.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
            # at a page, as the ONNX standard requires for mapped data; small arrays are read anyway
            step = 4096 if value.nbytes >= 2**16 else 64
            self._data.write(bytes(-self._data.tell() % step))
            tensor.raw_data = b""  # set_external_data requires some
            set_external_data(tensor, DATA, offset=self._data.tell(), length=value.nbytes)
            tensor.ClearField("raw_data")
            self._data.write(np.ascontiguousarray(value).data)
        self._tensors.append(tensor)
        return name


def _rounded(weight: Array, *, axis: int, largest: int) -> tuple[Array, Array]:
    """Whole numbers from -largest to largest, and the scale of each row or column of them."""
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(largest)
    scale[scale == 0] = 1  # zeros alone stay zeros
    scaled = weight / scale
    return np.rint(scaled, out=scaled).astype(np.int8), scale
