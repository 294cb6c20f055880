"""Equal names give equal scores on every processor: the table that was recorded on one holds here.

Libraries are also told to leave out this processor's better instructions, so that one machine
stands for several. ONNX Runtime has no such switch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processor_scores import PAIRS

ROOT = Path(__file__).parent.parent
RECORDED = json.loads((ROOT / "tests" / "data" / "processors.json").read_text(encoding="utf-8"))
FP32, INT8 = 2e-5, 1e-3
# Between kernels of two kinds, which the name tells apart, int8 was off by up to 0.04 of a logit.
OTHER_KERNELS = 0.1

SWITCHES = {
    "as it is": {},
    "without VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "least": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # OpenVINO runs on nothing less
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_scores_are_those_of_the_recorded_processor(folder: Path, switches: dict[str, str]) -> None:
    found = scored(folder, switches)
    assert found.keys() == RECORDED["rows"].keys()
    off = {}
    for row, recorded in RECORDED["rows"].items():
        difference = np.abs(np.subtract(found[row]["scores"], recorded["scores"])).max()
        if difference > tolerance(found[row]["name"], recorded["name"], switches):
            off[row] = f"{difference:.1e}"
    assert not off, f"unlike {RECORDED['processor']}"


def scored(folder: Path, switches: dict[str, str]) -> dict[str, Any]:
    """The table as a process with these switches computes it."""
    command = [sys.executable, "-m", "tests.processor_scores", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **switches, "HF_HUB_OFFLINE": "1"},
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def tolerance(found: str, recorded: str, switches: dict[str, str]) -> float:
    if not recorded.startswith("int8"):
        assert found == recorded
        return FP32
    # the names say what the processor has, not what a switch keeps a library from using
    other = found != recorded or ("openvino" in found and "ONEDNN_MAX_CPU_ISA" in switches)
    return OTHER_KERNELS if other else INT8


def test_the_recorded_scores_could_tell_a_wrong_one() -> None:
    for recorded in RECORDED["rows"].values():
        assert len(recorded["scores"]) == len(PAIRS)
        assert np.std(recorded["scores"]) > 0.1
