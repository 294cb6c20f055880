"""Models by hub id: from the cache without a network, from a hub with one, and never a pickle."""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_rerank_integrations import ModelNotFound, load_scorer
from bge_rerank_integrations.local.checkpoint import DOWNLOADED
from tests import tiny_models
from tests.local.hub import add_to_cache, commit_of, run_with_hub, running_hub

PAIRS = [("what is a panda?", "The giant panda is a bear."), ("大熊猫吃什么？", "竹子。")]
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    return tiny_models.build_reranker_base(tmp_path_factory.mktemp("retrained"), seed=31)


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory,
    reranker_base: Path,
    retrained: Path,
    bge_embedder: Path,
) -> Path:
    folder = tmp_path_factory.mktemp("hub-cache")
    add_to_cache(folder, "org/reranker", reranker_base, commit=OLD, branch="v1")
    add_to_cache(folder, "org/reranker", retrained, commit=NEW, branch="main")
    add_to_cache(folder, "BAAI/bge-base-en-v1.5", bge_embedder, commit=OLD, branch="main")
    return folder


def scores_of(model: str | Path, **options: Any) -> list[float]:
    options.setdefault("local_files_only", True)
    scores: list[float] = load_scorer(str(model), **options).score(PAIRS).tolist()
    return scores


@pytest.mark.parametrize("revision", [None, "main", NEW])
def test_a_hub_id_is_found_in_the_cache(cache: Path, retrained: Path, revision: str | None) -> None:
    found = scores_of("org/reranker", cache_dir=str(cache), revision=revision)
    assert found == scores_of(retrained)


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_picks_its_commit(cache: Path, reranker_base: Path, revision: str) -> None:
    options: dict[str, Any] = {"cache_dir": str(cache), "local_files_only": True}
    found = load_scorer("org/reranker", revision=revision, **options)
    assert found.score(PAIRS).tolist() == scores_of(reranker_base)
    assert found.name != load_scorer("org/reranker", **options).name


def test_the_name_is_the_id_that_was_asked_for(cache: Path) -> None:
    name = load_scorer("org/reranker", cache_dir=str(cache), local_files_only=True).name
    assert name.startswith("org/reranker#")
    assert str(cache) not in name


def test_an_embedders_instruction_goes_by_the_hub_id(cache: Path, bge_embedder: Path) -> None:
    instruction = "Represent this sentence for searching relevant passages: "
    by_id = scores_of("BAAI/bge-base-en-v1.5", cache_dir=str(cache))
    assert by_id == scores_of(bge_embedder, query_instruction=instruction)
    assert by_id != scores_of(bge_embedder)


def test_a_model_that_is_not_cached_is_not_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as missing:
        load_scorer("org/absent", cache_dir=str(tmp_path), local_files_only=True)
    message = str(missing.value)
    assert "org/absent is not in the cache" in message
    assert str(tmp_path) in message
    assert "downloads are switched off" in message
    assert 'pip install "bge-rerank-integrations[offline]"' in message
    assert isinstance(missing.value, FileNotFoundError)


def test_a_revision_that_is_not_cached_is_named(cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="org/reranker at revision v9 is not in the cache"):
        load_scorer("org/reranker", cache_dir=str(cache), revision="v9", local_files_only=True)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json",
        "model.bin", "model.pt", "model.pth", "model.ckpt", "training_args.bin", "optimizer.pt",
        "modeling_custom.py", "model.py", "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
        "model.pkl", "model.safetensors.bin", "onnx/model.onnx", "colbert_linear.pt",
        "sub/model.safetensors", "model.safetensors.py",
    ],
)  # fmt: skip
def test_no_pattern_brings_a_file_that_could_run_code(name: str) -> None:
    assert not any(fnmatch(name, pattern) for pattern in DOWNLOADED)


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00003.safetensors",
        "model.safetensors.index.json", "modules.json", "1_Pooling/config.json",
        "sentence_bert_config.json", "config_sentence_transformers.json",
    ],
)  # fmt: skip
def test_the_patterns_bring_what_a_model_needs(name: str) -> None:
    assert any(fnmatch(name, pattern) for pattern in DOWNLOADED)


SCORE = """
import json, sys
from bge_rerank_integrations import ModelNotFound, load_scorer
model, options, pairs = json.load(sys.stdin)
try:
    print(json.dumps(load_scorer(model, **options).score(pairs).tolist()))
except ModelNotFound as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def ask_hub(tmp_path: Path) -> Callable[..., Any]:
    """Scores in a process whose hub is at an address, or the error."""

    def ask(address: str, model: str, *, offline: bool = False, **options: Any) -> Any:
        options.setdefault("cache_dir", str(tmp_path / "downloads"))
        given = [model, options, PAIRS]
        home = tmp_path / "home"
        done = run_with_hub(SCORE, given, address=address, home=home, offline=offline)
        return json.loads(done.stdout.splitlines()[-1])

    return ask


def test_revision_token_and_patterns_reach_the_hub(
    ask_hub: Callable[..., Any], reranker_base: Path, retrained: Path, tmp_path: Path
) -> None:
    tagged = Path(shutil.copytree(reranker_base, tmp_path / "tagged"))
    for name in ("pytorch_model.bin", "modeling_custom.py", "README.md", "tf_model.h5"):
        (tagged / name).write_bytes(b"never to be fetched")
    with running_hub({"org/private": {"main": retrained, "v1": tagged}}) as hub:
        hub.private["org/private"] = "hf_secret"
        found = ask_hub(hub.address, "org/private", revision="v1", token="hf_secret")
        # how each process multiplies is decided by timing, which the last digits show
        np.testing.assert_allclose(found, scores_of(reranker_base), atol=1e-5, rtol=0)
        assert {token for _, _, token in hub.asked} == {"hf_secret"}
        assert hub.files_asked_for == {
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        }  # fmt: skip
        downloads = tmp_path / "downloads" / "models--org--private" / "snapshots"
        assert [commit.name for commit in downloads.iterdir()] == [commit_of("org/private", "v1")]

        hub.asked.clear()
        message = ask_hub(hub.address, "org/private", cache_dir=str(tmp_path / "other"))
        assert message.startswith("the hub has no org/private. If it is private, pass token=")
        message = ask_hub(hub.address, "org/private", revision="v2", token="hf_secret")
        assert message == "the hub has org/private, but no revision 'v2' of it"
        assert "hf_secret" not in message

        hub.asked.clear()
        again = ask_hub(hub.address, "org/private", revision="v1", local_files_only=True)
        np.testing.assert_allclose(again, found, atol=1e-5, rtol=0)
        offline = ask_hub(hub.address, "org/private", revision="v1", offline=True)
        np.testing.assert_allclose(offline, found, atol=1e-5, rtol=0)
        message = ask_hub(hub.address, "org/absent", offline=True)
        assert message.startswith("org/absent is not in the cache")
        assert "downloads are switched off" in message
        assert hub.asked == [], "neither local_files_only nor HF_HUB_OFFLINE asks anybody"


def test_a_hub_that_cannot_be_reached(ask_hub: Callable[..., Any]) -> None:
    with running_hub({}) as hub:
        gone = hub.address
    message = ask_hub(gone, "org/reranker")
    assert message.startswith("org/reranker is not in the cache")
    assert f"{gone} was asked for org/reranker: it cannot be reached" in message
