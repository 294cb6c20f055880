"""`bge-rerank calibrate` on the judged corpus of the examples' kind, and what it then does."""

import json
from pathlib import Path

from typer.testing import CliRunner

from bge_rerank_integrations import load_reranker, load_scorer
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.ranking.calibration import Calibration

ANIMALS = ["panda", "fox", "whale", "eagle", "otter", "wolf", "tiger", "horse", "camel", "koala"]


def judged(file: Path) -> Path:
    """A question on each animal, its own sentence, and those of all others."""
    sentences = {name: f"The {name} lives where it finds food." for name in ANIMALS}
    rows = [
        {
            "query": f"Where does the {name} live?",
            "positive": [sentences[name], f"Food is found where the {name} lives."],
            "negative": [text for other, text in sentences.items() if other != name],
        }
        for name in ANIMALS
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_calibration_is_written_and_used(tmp_path: Path) -> None:
    out, diagram = tmp_path / "c.json", tmp_path / "c.png"
    arguments = ["calibrate", "--judged", judged(tmp_path / "j.jsonl"), "--model", "offline"]
    arguments += ["--out", out, "--diagram", diagram]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    calibration = Calibration.load(out)
    assert lines[0] == f"{out}: 110 pairs of 10 queries"
    figures = [f"{calibration.top_error:.3f}", f"{calibration.top_floor:.3f}"]
    assert lines[3].split() == ["first", "three", *figures]
    kept = calibration.kept(calibration.threshold(0.9))
    assert lines[5] == f"target_recall=0.9 keeps {kept:.0%} of the passages"
    assert "0.95 needs a calibration of at least 19 queries with a relevant" in lines[6]
    assert diagram.read_bytes().startswith(b"\x89PNG")
    assert calibration.scorer == load_scorer("offline").name
    reranker = load_reranker("offline", calibration=out, min_probability=0.5)
    passages = ["Stocks fell on Monday.", "The panda lives where it finds food.", "Bread is baked."]
    results = reranker.rerank("Where does the panda live?", passages)
    assert [result.index for result in results] == [1]
    assert results[0].score == calibration.probability(results[0].raw_score) > 0.5
    assert reranker.rerank("Where does the panda live?", passages[:1]) == []


def test_one_source_of_judgements(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "c.json")])
    assert "either as --data FOLDER or as --judged FILE" in str(result.exception)
