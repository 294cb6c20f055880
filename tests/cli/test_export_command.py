"""`bge-rerank export`: what it prints, and what it answers to a folder it may not write."""

import json
from pathlib import Path

import pytest

from bge_rerank_integrations import load_scorer
from tests.cli.command import json_lines, run


def test_it_says_what_was_written_and_how_far_it_is_from_torch(
    bert_reranker: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run("export", str(bert_reranker), str(out), "--dtype", "int8")
    assert done.returncode == 0, done.stderr
    written, measured = done.stdout.splitlines()
    assert written.startswith(f"{out}: onnx, int8, 0.")
    assert measured.startswith("largest logit difference to torch in float32: ")
    assert "; Kendall tau 0." in measured
    assert measured.endswith("(32 fixed pairs)")

    refused = run("export", str(bert_reranker), str(out))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"bge-rerank: {out} exists; choose another folder, or ask to overwrite it\n"
    )
    again = run("export", str(bert_reranker), str(out), "--overwrite", "--json")
    (said,) = json_lines(again.stdout)
    assert said["folder"] == str(out)
    assert (said["format"], said["dtype"], said["scale"]) == ("onnx", "fp32", "logit")
    assert said["difference"] < 1e-5
    assert said["tau"] == 1


def test_an_embedded_model_is_a_graph_already(tmp_path: Path) -> None:
    done = run("export", "offline", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bge-rerank: 'offline' is already an ONNX graph; load it by its name\n"


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_what_it_wrote_is_ranked_by_either_backend(
    backend: str, bert_reranker: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert run("export", str(bert_reranker), out).returncode == 0
    query, passages = "what is a panda?", ["A panda is a bear.", "Water boils at 100 degrees."]
    done = run("rerank", query, *passages, "--model", out, "--backend", backend, "--json")
    assert done.returncode == 0, done.stderr
    found = {row["index"]: row["raw_score"] for row in map(json.loads, done.stdout.splitlines())}
    exact = load_scorer(str(bert_reranker), device="cpu", precision="fp32")
    expected = exact.score([(query, passage) for passage in passages])
    assert [found[0], found[1]] == pytest.approx(expected, abs=1e-5)
