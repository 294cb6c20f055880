"""Export an encoder as a model folder for ONNX Runtime and OpenVINO, and measure its error.

It needs the `export` extra; load the folder with `backend="onnx"` or `"openvino"`.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import get_args

import numpy as np

from bge_rerank_integrations.base.address import refuse_address
from bge_rerank_integrations.base.models import LLM_FAMILIES, OFFLINE_MODELS, Family, family_of
from bge_rerank_integrations.errors import (
    CheckpointError,
    InvalidInputError,
    UnsupportedModel,
    missing_extra,
)
from bge_rerank_integrations.load import load_scorer
from bge_rerank_integrations.local.checkpoint import SETTINGS, Checkpoint, open_checkpoint
from bge_rerank_integrations.local.model_config import why_not_flat
from bge_rerank_integrations.local.st_config import SETTINGS as PROMPTS
from bge_rerank_integrations.local.st_config import read_settings
from bge_rerank_integrations.options import HubOptions
from bge_rerank_integrations.tools.doctor import GRID, QUERIES
from bge_rerank_integrations.types import FloatArray, GraphFormat, Scale

# How far a float32 graph may be from torch, as a share of the score or of 1, whichever is more.
TOLERANCE = 1e-4
# The settings, and the weights of dense modules, which run after the graph.
COPIED = (*SETTINGS, "[0-9]_*/model.safetensors")


@dataclass(frozen=True, slots=True)
class Export:
    """The written folder, and how far its scores are from torch's in float32.

    `difference` is the largest between the raw scores of `pairs` fixed pairs, on `scale`; `tau` is
    `kendall_tau` of their orders.
    """

    folder: Path
    dtype: GraphFormat
    size: int
    """Bytes of the whole folder."""
    scale: Scale
    pairs: int
    difference: float
    tau: float


def export_onnx(
    model: str,
    folder: str | Path,
    *,
    dtype: GraphFormat = "fp32",
    overwrite: bool = False,
    revision: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Export:
    """Write an encoder as a folder with `onnx/model.onnx`, its tokenizer and config.

    `dtype` is the number format of the layers' matrices. int8 is dynamic quantization, with seven
    bits for a weight and one scale for each output; the word embeddings have eight bits and one
    scale for each row, and the rest stays in float32. The folder appears in one step, after the
    graph's scores were compared with torch's; a failure leaves nothing.

    Raises `InvalidInputError` for the address of a server, and for a folder that exists, which
    only `overwrite` replaces, and only if it holds nothing but an export; `UnsupportedModel` for a
    model that is not a BERT or XLM-R encoder; `CheckpointError` for a damaged one, and if a float32
    graph differs from torch by more than 1e-4; `MissingExtra`, `ModelNotFound`.
    """
    if dtype not in get_args(GraphFormat):
        raise InvalidInputError(
            f"dtype is {dtype!r}; it must be one of {', '.join(get_args(GraphFormat))}"
        )
    refuse_address(model)
    if model in OFFLINE_MODELS:
        raise InvalidInputError(f"{model!r} is already an ONNX graph; load it by its name")
    with missing_extra("export"):
        from bge_rerank_integrations.local.onnx_backend.export import GRAPH_FILES, write_graph
    hub = HubOptions(
        revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    checkpoint = open_checkpoint(model, hub)
    target = Path(folder).expanduser().absolute()
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise InvalidInputError(
                f"{target} exists; choose another folder, or ask to overwrite it"
            )
        _check_is_export(target, checkpoint.folder, {*COPIED, *GRAPH_FILES})
    family = _encoder_family(checkpoint)
    exact = load_scorer(model, backend="torch", device="cpu", precision="fp32", **hub.given())
    target.parent.mkdir(parents=True, exist_ok=True)
    # next to the target, because a rename is atomic only within one file system
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        new = Path(staging) / "new"
        (new / "onnx").mkdir(parents=True)
        _copy_settings(checkpoint, new, family)
        write_graph(checkpoint, new / "onnx", family, dtype)
        size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        with load_scorer(str(new), backend="onnx") as scorer:
            expected, found = exact.score(GRID), scorer.score(GRID)
        difference = float(np.abs(expected - found).max())
        if dtype == "fp32" and difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise CheckpointError(
                f"the graph of {model} differs from torch by {difference:.1e}, but only "
                f"{TOLERANCE:.0e} is allowed; nothing was written: please report this"
            )
        if target.exists():
            target.rename(Path(staging) / "old")
        new.rename(target)
    tau = kendall_tau(*(scores.reshape(len(QUERIES), -1) for scores in (expected, found)))
    return Export(target, dtype, size, exact.scale, len(GRID), difference, tau)


def kendall_tau(expected: FloatArray, found: FloatArray) -> float:
    """Kendall's rank agreement of two [queries, passages] arrays, averaged over the queries.

    Over all pairs of passages with different `expected` scores, it is the share in the same order
    minus the share in the reverse order: 1 for equal orders, -1 for reversed ones, and 1 if all
    scores are equal.
    """
    upper = np.triu_indices(expected.shape[1], 1)
    taus = []
    for one, other in zip(expected, found, strict=True):
        first, second = (np.sign(row[upper[0]] - row[upper[1]]) for row in (one, other))
        unequal = int(np.abs(first).sum())
        taus.append(float(first @ second) / unequal if unequal else 1.0)
    return float(np.mean(taus))


def _check_is_export(target: Path, source: Path, written: set[str]) -> None:
    why = ""
    if target.is_dir() and not target.is_symlink() and not target.samefile(source):
        files = [f.relative_to(target).as_posix() for f in target.rglob("*") if not f.is_dir()]
        others = [file for file in files if not any(fnmatch(file, name) for name in written)]
        if files and not others:
            return
        why = f"holds {min(others, default='nothing')}, so it "
    raise InvalidInputError(f"{target} {why}is not an export folder, and is not overwritten")


def _encoder_family(checkpoint: Checkpoint) -> Family:
    """Raises `UnsupportedModel` for a model whose graph we cannot write."""
    family = family_of(checkpoint.config, checkpoint.model)
    unknown = "an LLM reranker" if family in LLM_FAMILIES else why_not_flat(checkpoint.config)
    if unknown is not None:
        raise UnsupportedModel(
            f"{checkpoint.model} is not exported: only BERT and XLM-R encoders are, not {unknown}"
        )
    return family


def _copy_settings(checkpoint: Checkpoint, folder: Path, family: Family) -> None:
    for pattern in COPIED:
        for file in checkpoint.folder.glob(pattern):
            copy = folder / file.relative_to(checkpoint.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if family is Family.BI_ENCODER:
        # the table of models finds an instruction by the hub's id, which a folder does not have
        query, settings = read_settings(checkpoint).query_prompt, checkpoint.read_keys(PROMPTS)
        settings["prompts"] = {**(settings.get("prompts") or {}), "query": query}
        (folder / PROMPTS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
