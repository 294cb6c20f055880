"""Folders that `export_onnx` wrote, each once for a whole run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.types import GraphFormat

Exported = Callable[[str, GraphFormat], Path]


@pytest.fixture(scope="session")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Gives the export of a folder of `tests/conftest.py`, which is not to be changed."""
    built: dict[tuple[str, GraphFormat], Path] = {}

    def folder_of(model: str, dtype: GraphFormat) -> Path:
        if (model, dtype) not in built:
            source: Path = request.getfixturevalue(model)
            out = tmp_path_factory.mktemp("exported") / f"{model}-{dtype}"
            built[model, dtype] = export_onnx(str(source), out, dtype=dtype).folder
        return built[model, dtype]

    return folder_of
