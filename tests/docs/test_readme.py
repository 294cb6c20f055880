"""The programs in the READMEs print the output shown; test_examples.py checks the demo's."""

import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from scripts.draw_demo import PICTURE, draw
from tests.docs.printed import assert_shown
from tests.docs.test_docs_snippets import ROOT, blocks
from tests.forks import run_python

RESULTS = ROOT / "benchmarks" / "results"
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
LANGUAGES = {"python", "sh", "text"}


def outputs(readme: Path, language: str) -> str:
    """What the blocks of text show that follow a program in this language, without the demo's."""
    found = blocks(readme, LANGUAGES)
    return "".join(
        after.code
        for before, after in pairwise(found)
        if before.language == language and after.language == "text" and "make " not in before.code
    )


def test_the_picture_shows_the_demo_s_ranks_and_scores() -> None:
    drawn = re.findall(r"<text [^>]*>([^<]+)</text>", draw())
    kept = re.findall(r"<text [^>]*>([^<]+)</text>", PICTURE.read_text(encoding="utf-8"))
    assert_shown("\n".join(kept), "\n".join(drawn))
    assert "0.83" in kept


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_the_comparison_shows_times_that_were_measured(readme: Path) -> None:
    lines = readme.read_text(encoding="utf-8").splitlines()
    times, starts = (
        re.findall(r"\d+\.\d+", next(line for line in lines if first in line))
        for first in ("2.21x", "9.46 s")
    )
    assert (len(times), len(starts)) == (6, 10)
    # a range is of two machines: the peers' ratios are smaller on Intel, the starts faster on AMD
    assert {*times[::2], *starts[1::2]} <= measured_on("intel-r-xeon-r-processor")
    assert {*times[1::2], *starts[::2]} <= measured_on("amd-epyc")


def measured_on(machine: str) -> set[str]:
    report = RESULTS / f"{machine}-2-cores.md"
    return set(re.findall(r"\d+\.\d+", report.read_text(encoding="utf-8")))


def without_a_hub(folder: Path) -> dict[str, str]:
    return {**os.environ, "HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_the_python_prints_what_stands_below_it(readme: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    code = "\n".join(block.code for block in blocks(readme, {"python"}))
    program.write_text(code, encoding="utf-8")
    shown = outputs(readme, "python")
    assert len(shown.splitlines()) == 7, "of three programs"
    done = run_python(str(program), folder=tmp_path, environment=without_a_hub(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert_shown(shown, done.stdout)


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_the_shell_prints_what_stands_below_it(readme: Path, tmp_path: Path) -> None:
    (code,) = [b.code for b in blocks(readme, {"sh"}) if "bge-rerank rerank" in b.code]
    lines = [line for line in code.splitlines() if "passages.txt" in line]
    assert len(lines) == 2
    command = shlex.join([sys.executable, "-m", "bge_rerank_integrations.cli"])
    program = "\n".join(lines).replace("bge-rerank ", f"{command} ")
    done = subprocess.run(
        ["sh", "-c", program],
        cwd=tmp_path,
        env=without_a_hub(tmp_path),
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert_shown(outputs(readme, "sh"), done.stdout)


@pytest.mark.parametrize(
    ("shown", "really"),
    [
        ("a 0.50\n", "a 0.60\n"),
        ("a 8.28...\n", "a 7.9882\n"),
        ("a 0.83\n", "a 0.8\n0.83\n"),
        ("a 0.5\n", "b 0.5\n"),
        ("a 1\n", "a 2\n"),
        ("a\n", "a\nb\n"),
        ("a\nb\n", "a\n"),
        ("a\n...\nc\n", "a\nb\n"),
        ("a\n...\nb\n", "a\nb\nc\n"),
    ],
)
def test_another_output_would_be_seen(shown: str, really: str) -> None:
    with pytest.raises(AssertionError):
        assert_shown(shown, really)


def test_rounding_and_digits_left_out_are_let_pass() -> None:
    assert_shown("a 0.50  b\n...\nc 8.28...\n", "a 0.51 b\nx\ny\nc 8.281516075134277\n")
