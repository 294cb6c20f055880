"""An OpenVINO file's structure: the XML beside the weights, as optimum saves it."""

from pathlib import Path
from xml.etree import ElementTree as ET

from bge_rerank_integrations.errors import CheckpointError
from bge_rerank_integrations.local.onnx_backend.file import GraphFile, squashing

# From the least exact on; a graph that mixes them has the first one's.
FORMATS = {
    "int4": ("i4", "u4", "nf4"),
    "int8": ("i8", "u8"),
    "bf16": ("bf16",),
    "fp16": ("f16",),
    "fp32": ("f32",),
}


def read_openvino_file(path: Path) -> GraphFile:
    """Read the structure of an `.xml`, whose weights are in the `.bin` of the same name.

    Raises `CheckpointError` for a file that is missing or damaged, and for a document type, whose
    entities could fill the memory.
    """
    weights = path.with_suffix(".bin")
    try:
        content = path.read_bytes()
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise CheckpointError(f"{path} declares a document type, which no OpenVINO file does")
        root = ET.fromstring(content)  # noqa: S314 - without entities nothing grows
    except (OSError, ET.ParseError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}; fetch it again") from error
    if not weights.is_file():
        raise CheckpointError(f"{path} has its weights in {weights.name}, which is not beside it")
    shapes = [
        (data.get("element_type"), [int(n) for n in (data.get("shape") or "").split(",") if n])
        for layer in root.iter("layer")
        if layer.get("type") == "Const" and (data := layer.find("data")) is not None
    ]
    types = {kind for kind, shape in shapes if len(shape) > 1}
    formats = (name for name, kinds in FORMATS.items() if types.intersection(kinds))
    quantizing = any(layer.get("type") == "FakeQuantize" for layer in root.iter("layer"))
    return GraphFile(
        path,
        "int8" if quantizing and "int4" not in types else next(formats, "fp32"),
        frozenset(shape[0] for _, shape in shapes if len(shape) == 2),
        (path, weights),
        _squashed(root),
    )


def _squashed(root: ET.Element) -> dict[str, str]:
    """See `GraphFile.squashed`."""
    first = {
        edge.get("to-layer"): edge.get("from-layer")
        for edge in root.iterfind("edges/edge")
        if edge.get("to-port") == "0"
    }
    found: dict[str | None, str] = {}
    names: dict[str, str] = {}
    for layer in root.iterfind("layers/layer"):  # in the order in which they run
        number = layer.get("id")
        made = squashing(layer.get("type") or "", found.get(first.get(number)))
        if made is not None:
            found[number] = made
            for port in layer.iterfind("output/port"):
                names |= dict.fromkeys((port.get("names") or "").split(","), made)
    return names
