"""`bge-rerank doctor`: what is there, where a model would run, and whether it scores."""

import json
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

import bge_rerank_integrations
from bge_rerank_integrations.cli import app
from bge_rerank_integrations.local.device import Hardware, plan_device, read_hardware
from bge_rerank_integrations.local.tiny_encoder import build_tiny_encoder
from bge_rerank_integrations.tools import doctor
from bge_rerank_integrations.types import FloatArray, Pair
from tests.cli.command import BARE_COMMAND, installation, run
from tests.fakes import WordOverlapScorer


def report_of(*arguments: object) -> tuple[int, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json", *map(str, arguments)])
    return result.exit_code, json.loads(result.stdout)


def test_a_good_model_passes_and_is_measured(reranker_base: Path) -> None:
    code, report = report_of("--model", reranker_base)
    test = report["self_test"]
    assert (code, test["outcome"], test["model"]) == (0, "passed", str(reranker_base))
    assert 0 <= test["difference"] <= 1e-5
    tokenizer = Tokenizer.from_file(str(reranker_base / "tokenizer.json"))
    passages = [passage for _, passage in doctor.TIMED]
    tokens = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in passages]
    assert test["speed"]["passages"] == len(set(passages)) == 50
    assert test["speed"]["tokens"] == sum(tokens)
    assert test["speed"]["seconds"] > 0


def test_what_is_installed_and_where_it_would_run_is_reported(reranker_base: Path) -> None:
    _, report = report_of("--model", reranker_base)
    assert report["python"] == platform.python_version()
    packages = report["packages"]
    assert packages.pop("bge-rerank-integrations") == bge_rerank_integrations.__version__
    assert packages["torch"] == metadata.version("torch")
    assert set(packages) == set(doctor.PACKAGES)
    hardware = read_hardware()
    assert report["hardware"]["cores"] == hardware.cores
    assert report["plan"]["reasons"] == list(plan_device(hardware).reasons)


def test_the_text_says_the_same(reranker_base: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", str(reranker_base), "--device", "cpu"])
    lines = result.stdout.splitlines()
    assert f"  {'torch':<25}{metadata.version('torch')}" in lines
    assert "    - device cpu: requested" in lines
    assert lines.count("    - device cpu: requested") == 1
    plan = lines.index(f"Device plan of {reranker_base}")
    loaded = bge_rerank_integrations.load_scorer(str(reranker_base), device="cpu").plan
    shown = str(loaded).splitlines()[:3]
    assert lines[plan + 1 : plan + 4] == [f"  {line}" for line in shown]
    (outcome,) = [line for line in lines if line.startswith("  passed, ")]
    assert outcome.startswith(f"  passed, {reranker_base}: 8 pairs scored alone and in one batch")
    (speed,) = [line for line in lines if line.startswith("  1 query x 50 passages: ")]
    assert speed.endswith(" tokens/s")
    assert lines[-2:] == ["Problems", "  none"]


def test_the_cache_and_offline_mode_are_reported(reranker_base: Path, tmp_path: Path) -> None:
    model = str(reranker_base)
    set_off = run("doctor", "--model", model, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    left = run("doctor", "--json", "--model", model, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="0")
    assert f"  {tmp_path}, downloads are switched off (HF_HUB_OFFLINE)" in set_off.stdout
    assert json.loads(left.stdout)["hub"] == {"folder": str(tmp_path), "offline": False}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nan_weights", "gives nan"),
        ("missing_head", "lacks the weight"),
        ("truncated_weights", "interrupted download"),
        ("two_labels", "a classifier and not a reranker"),
        ("no_tokenizer", "has no tokenizer.json"),
    ],
)
def test_a_damaged_model_fails_with_what_is_wrong(
    damaged: Callable[[str], Path], kind: str, said: str
) -> None:
    code, report = report_of("--model", damaged(kind))
    assert (code, report["self_test"]["outcome"]) == (1, "failed")
    assert said in report["self_test"]["detail"]
    assert report["problems"][-1].endswith(report["self_test"]["detail"])
    result = CliRunner().invoke(app, ["doctor", "--model", str(damaged(kind))])
    assert result.exit_code == 1
    assert f"  failed, {damaged(kind)}: {report['self_test']['detail']}" in result.stdout
    remedy = f"  - the self-test of {damaged(kind)} failed: {report['self_test']['detail']}"
    assert result.stdout.splitlines()[-1] == remedy


def test_a_device_that_is_not_there_fails_and_those_that_are_are_named(
    reranker_base: Path,
) -> None:
    code, report = report_of("--model", reranker_base, "--device", "cuda:77")
    assert (code, report["plan"], report["self_test"]["outcome"]) == (1, None, "failed")
    assert "device 'cuda:77' is not available here; available: cpu" in report["self_test"]["detail"]


class NeighbourlyScorer(WordOverlapScorer):
    """Breaks a law: each score grows with the number of pairs in the call."""

    plan = plan_device(Hardware(cores=1))

    def score(self, pairs: Sequence[Pair]) -> FloatArray:
        return super().score(pairs) + np.float32(1e-3 * len(pairs))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def test_scores_that_depend_on_their_neighbours_fail() -> None:
    scorer = cast(Any, NeighbourlyScorer())
    test = doctor._measured("broken", scorer)
    assert test.outcome == "failed"
    # alone 0 + 0.001, in the batch of eight 0 + 0.008; most is allowed where the score is below 1
    assert test.difference == pytest.approx(0.007, abs=1e-5)
    assert "7.0e-03 where 1e-05 is allowed; try precision fp32" in test.detail


def test_half_precision_may_differ_by_more_but_not_by_a_lot() -> None:
    allowed = [doctor.TOLERANCE[dtype] for dtype in ("float32", "float16", "bfloat16")]
    assert allowed[0] < allowed[1] < allowed[2] < 0.1


def test_the_embedded_model_is_the_one_tested_by_default() -> None:
    code, report = report_of()
    test = report["self_test"]
    assert (code, test["model"], test["outcome"]) == (0, "offline", "passed")
    assert test["plan"]["number_format"] == "int8"
    # whole words of a real vocabulary: about a token for each, and the marks
    words = sum(len(passage.split()) for _, passage in doctor.TIMED)
    assert words < test["speed"]["tokens"] < 1.5 * words


def test_an_accelerator_is_tested_with_a_model_that_runs_on_it() -> None:
    gpu = plan_device(Hardware(cores=1, xpu=1))
    with doctor._chosen(None, gpu) as (name, folder):
        assert name == "a tiny random encoder"
        assert sorted(file.name for file in Path(folder).iterdir()) == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
    assert not Path(folder).exists()


def test_without_a_model_and_transformers_a_tiny_encoder_is_built(tmp_path: Path) -> None:
    local = ["numpy", "torch", "tokenizers", "safetensors", "threadpoolctl", "huggingface-hub"]
    there = installation(tmp_path, *local, "typer", "tqdm")
    done = run("doctor", "--json", command=BARE_COMMAND, **there)
    report = json.loads(done.stdout)
    assert report["packages"]["transformers"] is None
    assert report["packages"]["torch"] == metadata.version("torch")
    assert report["self_test"]["outcome"] == "passed"
    assert report["self_test"]["model"] == "a tiny random encoder"
    assert report["self_test"]["speed"]["passages"] == 50
    assert done.returncode == 0


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    there = installation(tmp_path, "numpy", "typer", "tqdm")
    done = run("doctor", command=BARE_COMMAND, **there)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  {'torch':<25}not installed" in done.stdout
    assert f"  {'llama-index-core':<25}not installed" in done.stdout
    assert f"  {'bge-rerank-integrations':<25}{bge_rerank_integrations.__version__}" in done.stdout
    assert "  not run, no model: " in done.stdout
    problems = done.stdout.partition("Problems\n")[2].splitlines()
    assert problems[0] == (
        "  - BGE models cannot run: 'torch' is not installed; it comes with: "
        'pip install "bge-rerank-integrations[local]"'
    )
    asked = run("doctor", "--model", "BAAI/bge-reranker-base", command=BARE_COMMAND, **there)
    assert asked.returncode == 1
    assert "  failed, BAAI/bge-reranker-base: " in asked.stdout


def test_a_token_in_the_environment_is_never_shown(tmp_path: Path) -> None:
    secret = "hf_NeverToBeShown123"
    for form in ([], ["--json"]):
        # a model that is not there, so that the token is at hand when the error is made
        done = run(
            *("doctor", "--model", "nobody/nothing", *form),
            HF_TOKEN=secret,
            HUGGING_FACE_HUB_TOKEN=secret,
            HF_HUB_CACHE=str(tmp_path),
            HF_HUB_OFFLINE="1",
        )
        assert done.returncode == 1
        assert "nobody/nothing is not in the cache" in done.stdout
        assert secret not in done.stdout + done.stderr


def test_the_tiny_encoder_tells_pairs_apart_and_agrees_with_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    build_tiny_encoder(tmp_path)
    pairs = [("what is a panda", "a bear"), ("what is a panda", "Berlin"), ("a", ""), ("é", "大")]
    scores = bge_rerank_integrations.load_scorer(str(tmp_path)).score(pairs)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for pair, score in zip(pairs, scores, strict=True):
        encoding = tokenizer.encode(*pair)
        with torch.inference_mode():
            logit = model(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([encoding.type_ids]),
            ).logits
        assert score == pytest.approx(logit.item(), abs=1e-5)
    assert len({round(float(score), 2) for score in scores}) == 4


def test_a_server_is_not_this_machine() -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "failed, a server: only this machine is looked at" in done.stdout
    assert "bge-rerank rerank --url" in done.stdout
