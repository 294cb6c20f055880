"""Reading a model folder: whole, sharded, damaged at any byte, and never a pickle."""

import json
import os
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from bge_rerank_integrations import CheckpointError, ModelNotFound, load_scorer
from bge_rerank_integrations.local.checkpoint import Checkpoint, open_checkpoint
from bge_rerank_integrations.local.torch_backend.linear import linear

PAIRS = [("what is a panda?", "The giant panda is a bear."), ("大熊猫吃什么？", "竹子。")]


@pytest.fixture
def folder(reranker_base: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(reranker_base, tmp_path / "model"))


@pytest.fixture
def sharded(reranker_base: Path, tmp_path: Path) -> Path:
    """The same model in several files."""
    copy = tmp_path / "sharded"
    model = AutoModelForSequenceClassification.from_pretrained(reranker_base)
    model.save_pretrained(copy, max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(reranker_base / name, copy)
    assert not (copy / "model.safetensors").exists()
    assert len(list(copy.glob("model-*.safetensors"))) > 2
    return copy


def scores_of(folder: Path) -> list[float]:
    scores: list[float] = load_scorer(str(folder), device="cpu").score(PAIRS).tolist()
    return scores


def test_shards_give_the_scores_of_the_single_file(reranker_base: Path, sharded: Path) -> None:
    assert scores_of(sharded) == scores_of(reranker_base)


def test_a_product_has_the_same_bits_wherever_its_weight_lies() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator) for size in ((7, 96), (80, 96)))
    expected = linear(weight, None, "plain")(x)
    memory = torch.zeros(weight.numel() + 16)
    addresses = set()
    for start in range(16):
        there = memory[start : start + weight.numel()].view_as(weight).copy_(weight)
        addresses.add(there.data_ptr() % 64)
        layer = linear(there, None, "plain")
        assert layer.weight.data_ptr() % 64 == 0
        assert torch.equal(layer(x), expected)
    assert len(addresses) == 16, "mapped weights lie at any address"


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        scores_of(sharded)


def test_a_shard_that_is_cut_short_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=shard.name):
        scores_of(sharded)


def test_a_tensor_that_its_shard_does_not_hold_is_named(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    name = "classifier.dense.weight"
    other = next(f for f in index["weight_map"].values() if f != index["weight_map"][name])
    index["weight_map"][name] = other
    file.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"classifier\.dense\.weight"):
        scores_of(sharded)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": null}', '{"weight_map": []}', '{"weight_map": {"a": 7}}'],
)
def test_a_damaged_index_is_refused(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError):
        scores_of(sharded)


def test_an_index_cannot_lead_out_of_its_folder(sharded: Path, tmp_path: Path) -> None:
    shard = min(sharded.glob("model-*.safetensors"))
    shutil.move(shard, tmp_path / "elsewhere.safetensors")
    file = sharded / "model.safetensors.index.json"
    text = file.read_text(encoding="utf-8").replace(shard.name, "../elsewhere.safetensors")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError):
        scores_of(sharded)


def test_a_file_cut_short_anywhere_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    dice = random.Random(20)
    offsets = {0, 1, 7, 8, 9, len(whole) - 1, *dice.sample(range(len(whole)), 20)}
    for offset in sorted(offsets):
        file.write_bytes(whole[:offset])
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            scores_of(folder)


def test_a_byte_too_many_is_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        scores_of(folder)


def test_a_header_changed_anywhere_gives_the_same_scores_or_is_refused(
    folder: Path, reranker_base: Path
) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    good = scores_of(reranker_base)
    dice = random.Random(7)
    refused = 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[dice.randrange(8 + length)] = dice.choice(b'019ab"{}[],: \x00\xff')
        file.write_bytes(changed)
        try:
            found = scores_of(folder)
        except CheckpointError:
            refused += 1
        else:
            assert found == good
    assert refused > 100


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        {"a": 1},
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {},
    ],
    ids=str,
)
def test_a_header_of_nonsense_is_refused(folder: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError):
        scores_of(folder)


@pytest.mark.parametrize("length", [2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_a_terabyte_is_refused(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        scores_of(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "\x00", "{'a': 1}"])
def test_a_config_that_is_no_object_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        scores_of(folder)


def test_a_config_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        scores_of(folder)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "weights.ckpt"])
def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    canary = tmp_path / "executed"
    torch.save({"classifier.out_proj.weight": Canary(canary)}, folder / name)
    with pytest.raises(CheckpointError) as refused:
        scores_of(folder)
    assert name in str(refused.value)
    assert "save_pretrained(folder, safe_serialization=True)" in str(refused.value)
    assert not canary.exists()
    torch.load(folder / name, weights_only=False)
    assert canary.exists(), "a canary that does not sing proves nothing"


def test_a_pickle_beside_good_weights_is_left_alone(
    folder: Path, reranker_base: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "executed"
    torch.save(Canary(canary), folder / "pytorch_model.bin")
    torch.save(Canary(canary), folder / "training_args.bin")
    assert scores_of(folder) == scores_of(reranker_base)
    assert not canary.exists()


@pytest.mark.parametrize(
    "model", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "..", "win\\path"]
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if model == "..":
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_scorer(model)
        return
    with pytest.raises(ModelNotFound, match="no folder") as refused:
        open_checkpoint(model)
    assert str(tmp_path) in str(refused.value)


def test_a_name_that_no_hub_model_can_have() -> None:
    for name in ("no spaces allowed", "-x", "a..b"):
        with pytest.raises((ModelNotFound, CheckpointError)):
            load_scorer(name, local_files_only=True)


def test_the_fingerprint_names_the_contents_wherever_they_lie(
    folder: Path, reranker_base: Path
) -> None:
    original = Checkpoint("model", reranker_base).fingerprint()
    assert len(original) == 12
    assert Checkpoint("other", folder).fingerprint() == original
    for name in ("config.json", "tokenizer.json"):
        file = folder / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        assert Checkpoint("model", folder).fingerprint() != original
        file.write_bytes(before)
    weights = load_file(folder / "model.safetensors")
    for tensor in weights:
        changed = {**weights, tensor: weights[tensor].clone()}
        changed[tensor].view(-1)[-1] += 1
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert Checkpoint("model", folder).fingerprint() != original, tensor
