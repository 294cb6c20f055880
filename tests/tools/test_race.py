"""`doctor --race`: a row for each backend and number format, its error, and what follows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bge_rerank_integrations import MissingExtra, load_scorer
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.local.device import half_formats, read_hardware
from bge_rerank_integrations.tools.doctor import GRID
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.tools.race import EXACT, Lap, race, recommend
from tests.cli.command import run
from tests.local.llm import tiny_llms

GRAPHS = ["onnx fp32", "openvino fp32", "onnx int8", "openvino int8"]


def test_every_back_end_and_format_has_a_row_with_its_error(
    bert_reranker: Path, tmp_path: Path
) -> None:
    laps = race(str(bert_reranker), device="cpu")
    halves = half_formats(read_hardware(), "cpu")
    assert [lap.label for lap in laps] == ["torch fp32", *(f"torch {h}" for h in halves), *GRAPHS]
    assert all(lap.seconds is not None and lap.seconds > 0 for lap in laps)
    rows = {lap.label: lap for lap in laps}
    assert (rows["torch fp32"].error, rows["torch fp32"].tau) == (0, 1)
    for exact in ("onnx fp32", "openvino fp32"):
        assert rows[exact].error == pytest.approx(0, abs=1e-5)
    expected = load_scorer(str(bert_reranker), device="cpu", precision="fp32").score(GRID)
    int8 = export_onnx(str(bert_reranker), tmp_path / "int8", dtype="int8").folder
    found = load_scorer(str(int8), backend="onnx").score(GRID)
    assert rows["onnx int8"].error == pytest.approx(np.abs(found - expected).max(), abs=1e-6)
    assert np.abs(found - expected).max() > EXACT


def test_a_folder_with_a_graph_alone_races_that_graph(bert_reranker: Path, tmp_path: Path) -> None:
    folder = export_onnx(str(bert_reranker), tmp_path / "int8", dtype="int8").folder
    torch, onnx, openvino = race(str(folder))
    assert (torch.seconds, onnx.label, openvino.label) == (None, "onnx int8", "openvino int8")
    assert "has no model.safetensors" in str(torch)
    assert onnx.seconds is not None
    assert onnx.error is None


def test_what_cannot_run_is_a_row_with_the_reason(tmp_path: Path) -> None:
    laps = race(str(tiny_llms.MODELS["gemma"](tmp_path)), device="cpu")
    assert laps[0].seconds is not None
    for lap in laps[-4:]:
        assert lap.seconds is None
        assert "only BERT and XLM-R encoders are, not an LLM reranker" in str(lap)
    assert {str(lap)[:31].strip() for lap in race("/nowhere")} == {
        f"{label:<16}did not run: no" for label in ("torch fp32", "onnx graph", "openvino graph")
    }


def test_a_runtime_that_is_not_installed_is_a_row_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, bert_reranker: Path, tmp_path: Path
) -> None:
    folder = export_onnx(str(bert_reranker), tmp_path / "graph").folder
    monkeypatch.setitem(sys.modules, "openvino", None)
    ours = "bge_rerank_integrations.local.onnx_backend.openvino"
    monkeypatch.delitem(sys.modules, ours, raising=False)
    *_, onnx, openvino = race(str(folder))
    assert (onnx.error, openvino.seconds) == (0, None)
    assert openvino.detail == str(MissingExtra("openvino", "openvino"))


FP32, BF16 = Lap("torch", "fp32", 1.0, 0.0, 1.0), Lap("torch", "bf16", 0.4, 0.02, 0.98)
ONNX, INT8 = Lap("onnx", "fp32", 1.5, 2e-6, 1.0), Lap("onnx", "int8", 0.39, 0.15, 0.9)
FASTEST = "torch fp32 was the fastest with float32's scores"
INT8_TOOK = "onnx int8 took 0.39 of its time, with scores off by up to 1.5e-01 (Kendall tau 0.90)"
ADVICE = "try it on your own data with bge-rerank eval"
MISSING = Lap("openvino", "fp32", detail="'openvino' is not installed")


@pytest.mark.parametrize(
    ("laps", "said"),
    [
        ([FP32, ONNX, MISSING], f"{FASTEST}, and nothing was much faster"),
        ([FP32, BF16, ONNX, INT8], f"{FASTEST}; {INT8_TOOK}: {ADVICE}"),
        (
            [Lap("torch", "fp32", 2.0, 0.0, 1.0), ONNX, Lap("torch", "bf16", 1.4, 0.02, 0.98)],
            "onnx fp32 was the fastest with float32's scores, and nothing was much faster",
        ),
        (
            [MISSING, Lap("onnx", "int8", 0.2)],
            "onnx int8 was the fastest; float32 did not run, so its error is unknown",
        ),
        ([MISSING], "nothing ran"),
    ],
)
def test_the_recommendation_follows_from_the_rows(laps: list[Lap], said: str) -> None:
    assert recommend(laps) == said
    assert recommend(laps[::-1]) == said


def test_the_command_shows_the_rows_before_the_problems(
    bert_reranker: Path, tmp_path: Path
) -> None:
    folder = str(export_onnx(str(bert_reranker), tmp_path / "graph").folder)
    lines = CliRunner().invoke(app, ["doctor", "--model", folder, "--race"]).stdout.splitlines()
    start, end = lines.index("Race: 1 query x 50 passages, errors against float32"), -2
    assert [line.split()[:2] for line in lines[start + 1 : end]] == [
        ["torch", "fp32"],
        ["onnx", "fp32"],
        ["openvino", "fp32"],
        [lines[end - 1].split()[0], "fp32"],
    ]
    assert "was the fastest with float32's scores" in lines[end - 1]
    assert lines[end] == "Problems"
    assert lines[-1].endswith("only an ONNX or OpenVINO graph: run that with backend='onnx'")
    written = CliRunner().invoke(app, ["doctor", "--json", "--model", folder, "--race"]).stdout
    found = json.loads(written)["race"]
    assert [row["precision"] for row in found["laps"]] == ["fp32"] * 3
    assert found["recommendation"] == recommend([Lap(**row) for row in found["laps"]])


def test_a_race_needs_a_model() -> None:
    done = run("doctor", "--race")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bge-rerank: --race needs the model to time: give --model\n"
