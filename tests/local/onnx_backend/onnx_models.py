"""ONNX files for the tests: tiny models of `tiny_models.py` exported, and graphs made by hand."""

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from transformers import AutoModel, AutoModelForSequenceClassification

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Graph(torch.nn.Module):
    """A model whose inputs are positional and whose output is one tensor, as an export wants it."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True)))[self.output]
        return out


def session_of(file: Path) -> onnxruntime.InferenceSession:
    """The graph in nothing but ONNX Runtime, with products that no processor saturates."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def load_torch(folder: Path, output: str) -> torch.nn.Module:
    """The folder's model in transformers, the reference of its graph."""
    kind = AutoModelForSequenceClassification if output == "logits" else AutoModel
    model: torch.nn.Module = kind.from_pretrained(folder).eval()
    return model


def export(folder: Path, file: Path, output: str, *, inputs: tuple[str, ...] = INPUTS) -> Path:
    """The folder's model as a float32 graph of any batch and length."""
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with warnings.catch_warnings():
        # the exporter's own: it is the old one, and its tracing warns of every Python branch
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Graph(load_torch(folder, output), inputs, output).eval(),
            (ids, mask, torch.zeros_like(ids))[: len(inputs)],
            str(file),
            dynamo=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*inputs, output)}
            | ({"logits": {0: "batch"}} if output == "logits" else {}),
        )
    return file


def quantize(file: Path, into: Path) -> Path:
    """The graph in int8, its activations quantized anew at every run."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(file, into)
    return into


def product_of_ids(
    file: Path,
    *,
    first: int | None = None,
    integers: int = TensorProto.INT64,
    name: str = "input_ids",
    shape: tuple[int, ...] = (1, 1),
) -> Path:
    """A graph whose logit is the product of all its ids, or of the first ones.

    It fills a tensor of that shape with ones and adds them up, so that it needs as much memory as
    the ids say, and any padding or neighbour would change the logit. OpenVINO runs it where the
    number of the tensor's sides is known: with `first`.
    """
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    numbers = {"sides": [first or -1], "shape": list(shape)}
    nodes = [helper.make_node("Cast", [name], ["ids"], to=TensorProto.INT64)]
    if first is not None:
        numbers |= {"start": [0], "end": [first], "axis": [1]}
        nodes.append(helper.make_node("Slice", ["ids", "start", "end", "axis"], ["some"]))
    nodes += [
        helper.make_node("Reshape", [nodes[-1].output[0], "sides"], ["flat"]),
        helper.make_node("ConstantOfShape", ["flat"], ["ones"], value=one),
        helper.make_node("ReduceSum", ["ones"], ["product"], keepdims=0),
        helper.make_node("Reshape", ["product", "shape"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product of ids",
        [helper.make_tensor_value_info(name, integers, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", *shape[1:]])],
        [_constant(name, values) for name, values in numbers.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(file))
    return file


def _constant(name: str, values: list[int]) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
