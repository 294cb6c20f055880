"""`verify` finds right scores right and wrong ones wrong, and says what it compared with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bge_rerank_integrations import CheckpointError, InvalidInputError, load_scorer
from bge_rerank_integrations.base.models import OFFLINE_MODELS
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.tools.export import export_onnx
from bge_rerank_integrations.tools.verify import PAIRS, TOLERANCE, Comparison, verify
from bge_rerank_integrations.types import GraphFormat
from tests.local.hub import add_to_cache
from tests.local.llm.tiny_llms import build_gemma, build_minicpm
from tests.remote.serving import serving
from tests.remote.stand_ins import STAND_INS


def by_reference(comparisons: tuple[Comparison, ...]) -> dict[str, Comparison]:
    return {comparison.reference: comparison for comparison in comparisons}


@pytest.mark.parametrize("name", ["reranker_base", "bert_reranker", "bge_embedder"])
def test_a_right_model_equals_every_reference(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    found = verify(str(folder))
    assert found.verdict == "right"
    compared = by_reference(found.comparisons)
    libraries = {"sentence-transformers"} | ({"transformers"} if "reranker" in name else set())
    for reference in libraries:
        comparison = compared[reference]
        assert comparison.outcome == "equal"
        assert comparison.version is not None
        apart = np.subtract(comparison.scores, comparison.reference_scores)
        assert comparison.difference == pytest.approx(float(np.abs(apart).max()))
        assert np.std(comparison.reference_scores) > 0.02, "equal scores could not tell a wrong one"
        assert len(comparison.reference_scores) == len(PAIRS)
    found.save(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["verdict"] == "right"
    assert written["scorer"] == load_scorer(str(folder), device="cpu", precision="fp32").name
    assert [c["outcome"] for c in written["comparisons"]] == [
        comparison.outcome for comparison in found.comparisons
    ]


def test_v2_gemma_equals_transformers_own_model(tmp_path: Path) -> None:
    found = verify(str(build_gemma(tmp_path / "gemma")))
    compared = by_reference(found.comparisons)["transformers"]
    assert (compared.outcome, found.verdict) == ("equal", "right")
    assert np.std(compared.reference_scores) > 0.02


def test_a_model_that_no_installed_library_scores_is_not_proven(tmp_path: Path) -> None:
    found = verify(str(build_minicpm(tmp_path / "minicpm")))
    assert found.verdict == "not proven"
    reason = by_reference(found.comparisons)["transformers"].detail
    assert reason == "transformers alone has no rule that scores a layerwise model"


@pytest.mark.parametrize("model", OFFLINE_MODELS)
def test_an_embedded_model_is_compared_with_itself_alone(model: str) -> None:
    found = verify(model)
    *alone, references = found.comparisons[:3]
    assert [comparison.outcome for comparison in alone] == ["equal", "equal"]
    assert references.detail == f"{model} comes with a package and is not a folder that they read"
    assert found.verdict == "not proven"


def test_rounded_scores_are_wrong_within_the_tolerance_of_float32(reranker_base: Path) -> None:
    found = verify(str(reranker_base), precision="bf16", tolerance=TOLERANCE)
    assert found.verdict == "wrong"
    assert by_reference(found.comparisons)["transformers"].outcome == "different"


def test_published_scores_of_another_model_are_wrong(reranker_base: Path, tmp_path: Path) -> None:
    model = "BAAI/bge-reranker-base"
    add_to_cache(tmp_path, model, reranker_base, commit="1" * 40, branch="main")
    found = verify(model, cache_dir=str(tmp_path), local_files_only=True)
    published = by_reference(found.comparisons)["FlagEmbedding issue 108"]
    assert published.outcome == "different"
    assert published.reference_scores == pytest.approx((-8.154392, 6.182112))
    assert by_reference(found.comparisons)["transformers"].outcome == "equal"
    assert found.verdict == "wrong"


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_graph_equals_a_plain_session_of_onnx_runtime(
    dtype: GraphFormat, bert_reranker: Path, tmp_path: Path
) -> None:
    export_onnx(str(bert_reranker), tmp_path / "graph", dtype=dtype)
    found = verify(str(tmp_path / "graph"), backend="onnx")
    compared = by_reference(found.comparisons)
    assert (compared["ONNX Runtime"].outcome, found.verdict) == ("equal", "right")
    assert np.std(compared["ONNX Runtime"].reference_scores) > 0.02
    assert compared["sentence-transformers"].outcome == "not compared"


@pytest.mark.parametrize("right", [True, False])
def test_a_server_is_held_against_the_model_on_this_machine(
    reranker_base: Path, *, right: bool
) -> None:
    scorer = load_scorer(str(reranker_base), device="cpu", precision="fp32")

    def probability(query: str, passage: str) -> float:
        if (query, passage) not in PAIRS:  # the handshake's sentences, which a reranker tells apart
            return float(query == passage)
        logit = float(scorer.score([(query, passage)])[0])
        return float(1 / (1 + np.exp(-logit if right else logit)))

    served = replace(STAND_INS["cohere"], plain=probability)
    with serving(served) as server:
        found = verify(str(reranker_base), base_url=server.url, dialect="cohere")
    own = by_reference(found.comparisons)["this package, on this machine"]
    assert own.outcome == ("equal" if right else "different")
    assert found.verdict == ("right" if right else "wrong")


def test_an_address_as_the_model_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidInputError, match=r"base_url='http://127\.0\.0\.1:1'"):
        verify("http://127.0.0.1:1")


def test_a_damaged_model_raises_what_loading_raises(damaged: Any) -> None:
    with pytest.raises(CheckpointError):
        verify(str(damaged("truncated_weights")))


def test_the_command_prints_a_line_for_each_reference_and_exits_by_the_verdict(
    reranker_base: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["verify", str(reranker_base), "--json", str(report)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "the scores are right"
    assert sum(line.startswith("  equal ") for line in lines) >= 4
    assert json.loads(report.read_text(encoding="utf-8"))["verdict"] == "right"
    rounded = ["verify", str(reranker_base), "--precision", "bf16", "--tolerance", "1e-7"]
    done = CliRunner().invoke(app, rounded)
    assert done.exit_code == 1
    assert "the scores are WRONG" in done.stdout
