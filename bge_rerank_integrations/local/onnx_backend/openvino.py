"""OpenVINO on the CPU, as a runtime of `encoder.py`; it reads the same ONNX files."""

import os
import queue
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bge_rerank_integrations.base.fork import Lock
from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.onnx_backend.encoder import INPUTS, usable_cores
from bge_rerank_integrations.local.onnx_backend.file import GraphFile

_TELEMETRY = "openvino_telemetry"
_was_there = _TELEMETRY in sys.modules
# Importing openvino sends telemetry unless the module that sends it is missing. None in this table
# makes Python treat it as missing.
sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
try:
    import openvino  # type: ignore[import-untyped]
finally:
    if not _was_there:
        del sys.modules[_TELEMETRY]

VERSION = openvino.__version__.partition("-")[0]


Requests = queue.SimpleQueue[Any]


class OpenVino:
    """A graph in OpenVINO; see `encoder.Runtime`.

    It computes in float32, which is not OpenVINO's default where the processor has bfloat16: that
    would round the logits too. Raises `CheckpointError` for a file that it cannot load.
    """

    name = "OpenVINO"
    errors: tuple[type[Exception], ...] = (RuntimeError,)

    def __init__(self, file: GraphFile) -> None:
        # other kernels than ONNX Runtime's: the scores of a large model differ by 3e-5 in float32
        self.number_format = f"{file.number_format}-openvino"
        self.reasons: tuple[str, ...] = (
            f"device cpu: OpenVINO {VERSION}",
            f"precision {file.number_format}: as the file has it; activations in float32",
        )
        if file.quantized:
            slow = "on one machine slower than float32 here; bge-rerank doctor --race times both"
            self.reasons += (f"{file.number_format}: {slow}",)
        self._file = file
        self._turn = Lock()
        self._compiled: tuple[Any, Requests] | None = None
        graph, _ = self._ready()
        self.inputs: Mapping[str, str] = {
            # a Cast that changes nothing gives an input a second name
            next((name for name in INPUTS if name in node.get_names()), node.get_any_name()): (
                node.get_element_type().get_type_name()
            )
            for node in graph.inputs
        }
        self.outputs: Mapping[str, tuple[int | None, ...]] = {
            node.get_any_name(): tuple(
                None if size.is_dynamic else int(size.get_length())
                for size in node.get_partial_shape()
            )
            for node in graph.outputs
        }

    def infer(self, feed: Mapping[str, NDArray[Any]], output: str) -> NDArray[Any]:
        _, requests = self._ready()
        request = requests.get()
        try:
            request.infer(dict(feed), share_inputs=True)
            result: NDArray[Any] = request.get_tensor(output).data.copy()
        except RuntimeError as error:
            if is_out_of_memory(error):
                # from then on it fails for every input, however small
                with self._turn:
                    self._compiled = None
            raise
        finally:
            requests.put(request)
        return result

    def _ready(self) -> tuple[Any, Requests]:
        """The compiled graph, and requests for as many calls at once as there are workers."""
        with self._turn:
            if self._compiled is None:
                try:
                    self._compiled = _compile(self._file)
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
                    # the last line: the first only names OpenVINO's own source files
                    reason = (str(error).strip().splitlines() or [""])[-1].strip()
                    raise CheckpointError(
                        f"OpenVINO {VERSION} cannot load {self._file.path}, which is damaged or "
                        f"newer than it: {reason}"
                    ) from error
            return self._compiled


def _compile(file: GraphFile) -> tuple[Any, Requests]:
    cores = usable_cores()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        # two processes would pin their threads to the same cores
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    with _readable(file) as path:
        graph = core.compile_model(core.read_model(path), "CPU", settings)
    requests: Requests = queue.SimpleQueue()
    for _ in range(cores):
        requests.put(graph.create_infer_request())
    return graph, requests


@contextmanager
def _readable(file: GraphFile) -> Iterator[Path]:
    """A path where OpenVINO finds the graph and its weights.

    It looks for the weights next to a link's target, and refuses a link out of the graph's folder.
    The hub's cache consists of links to files that are named by their contents: those files
    get their names back in a temporary folder, without being copied.
    """
    graph, *weights = file.files
    if not (weights and any(part.is_symlink() for part in file.files)):
        yield graph
        return
    # on the file system of the weights, or they could not have a second name
    target = weights[0].resolve().parent
    place = target if os.access(target, os.W_OK) else None
    # on Windows a mapped file cannot be removed: the system's own cleaning takes it later
    with tempfile.TemporaryDirectory("bge-rerank", dir=place, ignore_cleanup_errors=True) as folder:
        for part in file.files:
            name = Path(folder) / part.name
            try:
                name.hardlink_to(part.resolve())
            except OSError:  # another file system, one without such links, or somebody else's file
                shutil.copyfile(part, name)
        yield Path(folder) / graph.name
