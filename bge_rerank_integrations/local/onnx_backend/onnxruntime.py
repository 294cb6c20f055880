"""ONNX Runtime on the CPU, as a runtime of `encoder.py`."""

import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.onnx_backend.encoder import first_line
from bge_rerank_integrations.local.onnx_backend.file import GraphFile

__all__ = ["OnnxRuntime", "onnxruntime"]

# From 1.29 on, ONNX Runtime sends telemetry unless this is set while it is imported.
_SWITCH = "ORT_DISABLE_TELEMETRY"
_given = os.environ.get(_SWITCH)
os.environ[_SWITCH] = _given or "1"
try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
finally:
    if _given is None:
        del os.environ[_SWITCH]

# ONNX Runtime has an error for each status and no common one, and none for memory.
ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


class OnnxRuntime:
    """A graph in ONNX Runtime; see `encoder.Runtime`.

    Raises `CheckpointError` for a file that it cannot load.
    """

    name = "ONNX Runtime"
    errors: tuple[type[Exception], ...] = ERRORS

    def __init__(self, file: GraphFile) -> None:
        version = onnxruntime.__version__
        self.number_format = file.number_format
        self.reasons: tuple[str, ...] = (
            f"device cpu: ONNX Runtime {version}, its CPU provider",
            f"precision {file.number_format}: as the file has it",
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Plans memory once for each length of input and keeps every plan.
        options.enable_mem_pattern = False
        # Without it 8-bit products saturate at 16 bits on a processor without VNNI: other scores.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 4  # errors are raised; ONNX Runtime would print them as well
        try:
            self._session = onnxruntime.InferenceSession(
                str(file.path), options, providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise CheckpointError(
                f"ONNX Runtime {version} cannot load {file.path}, which is damaged or newer than "
                f"it: {first_line(error)}"
            ) from error
        self.inputs: Mapping[str, str] = {
            node.name: node.type for node in self._session.get_inputs()
        }
        self.outputs: Mapping[str, tuple[int | None, ...]] = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_outputs()
        }

    def infer(self, feed: Mapping[str, NDArray[Any]], output: str) -> NDArray[Any]:
        result: NDArray[Any] = self._session.run([output], dict(feed))[0]
        return result
