"""The forward over ONNX Runtime and OpenVINO, against transformers one at a time and by hand."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from bge_rerank_integrations import CheckpointError, OutOfMemoryError, UnsupportedModel
from bge_rerank_integrations.local.engine import Engine
from bge_rerank_integrations.local.memory import is_out_of_memory
from bge_rerank_integrations.local.onnx_backend.encoder import (
    GraphEncoder,
    GraphUse,
    Runtime,
)
from bge_rerank_integrations.local.onnx_backend.file import GraphFile, read_graph_file
from bge_rerank_integrations.local.onnx_backend.onnxruntime import OnnxRuntime
from bge_rerank_integrations.local.onnx_backend.openvino import OpenVino
from bge_rerank_integrations.local.st_config import ModelOutput
from bge_rerank_integrations.local.text.tokenizer import TextTokenizer, TokenSequence
from bge_rerank_integrations.options import BatchOptions
from tests.local.onnx_backend import onnx_models

LENGTHS = (7, 3, 31, 12, 64, 5)


RUNTIMES: dict[str, Callable[[GraphFile], Runtime]] = {"onnx": OnnxRuntime, "openvino": OpenVino}

Encoder = Callable[..., GraphEncoder]


def load(runtime: str, graph: Path, output: ModelOutput, *, vocabulary: int = 300) -> GraphEncoder:
    file = read_graph_file(graph)
    use = GraphUse(output, vocabulary=vocabulary, padding=0, segments=True)
    return GraphEncoder(RUNTIMES[runtime](file), file, use)


@pytest.fixture(params=RUNTIMES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Loads a graph in each of the runtimes."""
    return partial(load, request.param)


def sequence(*ids: int, first_segment: int | None = None) -> TokenSequence:
    return TokenSequence(
        np.array(ids, dtype=np.int32), len(ids) if first_segment is None else first_segment
    )


def random_sequences(lengths: Sequence[int] = LENGTHS) -> list[TokenSequence]:
    """Ids that every tiny tokenizer has and none pads with; the second half is of segment 1."""
    random = np.random.default_rng(5)
    return [
        sequence(*random.integers(5, 300, length).tolist(), first_segment=length // 2)
        for length in lengths
    ]


def torch_row(model: Any, one: TokenSequence, output: ModelOutput) -> np.ndarray:
    """The row that transformers gives for one sequence by itself."""
    ids = torch.from_numpy(one.ids.astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.type_vocab_size > 1:
        inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= one.first_segment).long()[None]
    with torch.inference_mode():
        out = model(**inputs)
    if output == "logit":
        row: torch.Tensor = out.logits[0]
    else:
        hidden = out.last_hidden_state[0]
        row = hidden[0] if output == "cls" else hidden.mean(0)
    return row.numpy()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def bert_graph(files: Path, bert_reranker: Path) -> Path:
    return onnx_models.export(bert_reranker, files / "bert.onnx", "logits")


@pytest.fixture(scope="module")
def int8_graph(files: Path, bert_graph: Path) -> Path:
    return onnx_models.quantize(bert_graph, files / "int8.onnx")


def test_logits_are_those_of_transformers(
    encoder: Encoder, bert_graph: Path, bert_reranker: Path
) -> None:
    sequences = random_sequences()
    reference = onnx_models.load_torch(bert_reranker, "logits")
    rows = encoder(bert_graph, "logit").run(sequences)
    assert rows.shape == (len(LENGTHS), 1)
    assert rows.dtype == np.float32
    expected = [torch_row(reference, one, "logit") for one in sequences]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    one_segment = [sequence(*one.ids.tolist()) for one in sequences]
    assert np.abs(encoder(bert_graph, "logit").run(one_segment) - rows).max() > 0.1


def test_a_graph_without_token_types_is_given_none(
    encoder: Encoder, files: Path, reranker_base: Path
) -> None:
    graph = onnx_models.export(
        reranker_base, files / "xlmr.onnx", "logits", inputs=onnx_models.INPUTS[:2]
    )
    sequences = random_sequences()
    reference = onnx_models.load_torch(reranker_base, "logits")
    expected = [torch_row(reference, one, "logit") for one in sequences]
    np.testing.assert_allclose(encoder(graph, "logit").run(sequences), expected, atol=1e-5)


@pytest.mark.parametrize(("output", "folder"), [("cls", "bge_embedder"), ("mean", "mean_embedder")])
def test_vectors_are_those_of_transformers(
    encoder: Encoder, files: Path, request: pytest.FixtureRequest, output: ModelOutput, folder: str
) -> None:
    model: Path = request.getfixturevalue(folder)
    graph = onnx_models.export(model, files / f"{output}.onnx", "last_hidden_state")
    reference = onnx_models.load_torch(model, "last_hidden_state")
    sequences = random_sequences()
    rows = encoder(graph, output).run(sequences)
    assert rows.shape == (len(LENGTHS), 32)
    expected = [torch_row(reference, one, output) for one in sequences]
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_int8_rows_do_not_depend_on_their_neighbours(encoder: Encoder, int8_graph: Path) -> None:
    forward, sequences = encoder(int8_graph, "logit"), random_sequences()
    together = forward.run(sequences)
    alone = np.concatenate([forward.run([one]) for one in sequences])
    assert np.array_equal(together, alone)
    assert np.array_equal(forward.run(sequences[::-1]), alone[::-1])

    # what is kept out: the same graph, given the same sequences as one padded batch
    widest = max(LENGTHS)
    ids, mask, types = np.zeros((3, len(LENGTHS), widest), dtype=np.int64)
    for row, one in enumerate(sequences):
        length = len(one.ids)
        ids[row, :length], mask[row, :length] = one.ids, 1
        types[row, one.first_segment : length] = 1
    session = onnx_models.session_of(int8_graph)
    feed = dict(zip(onnx_models.INPUTS, (ids, mask, types), strict=True))
    assert np.abs(session.run(["logits"], feed)[0] - alone).max() > 0.01


def test_any_number_of_threads_may_run_at_once(encoder: Encoder, int8_graph: Path) -> None:
    forward = encoder(int8_graph, "logit")
    batches = [random_sequences(range(3 + start, 40, 5)) for start in range(12)]
    expected = [forward.run(batch) for batch in batches]
    with ThreadPoolExecutor(12) as pool:
        for found, rows in zip(pool.map(forward.run, batches), expected, strict=True):
            assert np.array_equal(found, rows)


def test_the_plan_says_what_runs(encoder: Encoder, bert_graph: Path, int8_graph: Path) -> None:
    plan = encoder(int8_graph, "logit").plan
    name = {"int8": "ONNX Runtime", "int8-openvino": "OpenVINO"}[plan.precision]
    lines = str(plan).splitlines()
    assert lines[0] == f"cpu, {plan.precision}, {name}, one sequence at a time per core"
    assert "  - one sequence at a time: in int8 neighbours would count" in lines
    plan = encoder(bert_graph, "logit").plan
    assert plan.precision == {"ONNX Runtime": "fp32", "OpenVINO": "fp32-openvino"}[name]
    assert str(plan).splitlines()[0].endswith(f"{name}, batches of 512 tokens per core")


@pytest.mark.parametrize("integers", [TensorProto.INT64, TensorProto.INT32])
def test_ids_come_in_the_integers_that_the_graph_takes(tmp_path: Path, integers: int) -> None:
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx", integers=integers)
    rows = load("onnx", graph, "logit", vocabulary=3).run(
        [sequence(2, 3, 7), sequence(5), sequence(4, 4)]
    )
    assert rows.tolist() == [[42.0], [5.0], [16.0]]


def test_memory_that_runs_out_is_told_from_other_errors(
    tmp_path: Path, bert_reranker: Path
) -> None:
    """2**50 floats are more than any machine can address, so the allocation truly fails."""
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx")
    forward = load("onnx", graph, "logit", vocabulary=3)
    engine = Engine("product", lambda: "0", TextTokenizer(bert_reranker), forward)
    huge = sequence(2**20, 2**30)
    with pytest.raises(OutOfMemoryError, match=r"position 8, of 2 tokens.*product"):
        engine.run([sequence(3, 4), huge], [7, 8], BatchOptions())
    assert engine.run([sequence(3, 4), sequence(5)], [0, 1], BatchOptions()).tolist() == [[12], [5]]
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        forward.run([sequence(-3)])
    assert not is_out_of_memory(caught.value)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, emptied, Path.unlink])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx")
    damage(graph)
    with pytest.raises(CheckpointError, match=r"product\.onnx"):
        load("onnx", graph, "logit")


def test_an_unknown_input_is_refused(tmp_path: Path) -> None:
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx", name="pixel_values")
    with pytest.raises(UnsupportedModel, match=r"'pixel_values' of .*; supported: input_ids"):
        load("onnx", graph, "logit")


def test_an_output_that_is_no_logit_is_refused(
    encoder: Encoder, tmp_path: Path, bert_graph: Path
) -> None:
    graph = onnx_models.product_of_ids(tmp_path / "product.onnx", shape=(1, 1, 1))
    with pytest.raises(UnsupportedModel, match=r"\[batch, 1\]; it has logits \[1, 1, 1\]"):
        load("onnx", graph, "logit")
    with pytest.raises(UnsupportedModel, match=r"\[batch, tokens, width\]; it has logits"):
        encoder(bert_graph, "cls")


SCORE = """
import os
from bge_rerank_integrations import load_scorer
load_scorer("offline").score([("panda", "A panda.")])
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
"""


@pytest.mark.parametrize("given", [None, "1"])
def test_onnx_runtime_reports_to_nobody(tmp_path: Path, given: str | None) -> None:
    """Its releases from 1.29 on keep a number of the device where they report."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCORE],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(given)
    assert [*tmp_path.rglob("deviceid")] == []
