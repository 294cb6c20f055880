"""Hardware in, plan out: the whole table, without owning any of it."""

import dataclasses
from typing import Any

import pytest
import torch

from bge_rerank_integrations import InvalidInputError
from bge_rerank_integrations.local.device import (
    CudaDevice,
    Hardware,
    _warn_once,
    plan_device,
    read_hardware,
)
from bge_rerank_integrations.types import Precision

CPU = Hardware(cores=8)
CPU_BF16 = Hardware(cores=8, cpu_bf16=True)
AMPERE = Hardware(cores=8, cuda=(CudaDevice("A100", (8, 0)),))
HOPPER = Hardware(cores=8, cuda=(CudaDevice("H100", (9, 0)),))
TURING = Hardware(cores=8, cuda=(CudaDevice("T4", (7, 5)),))
PASCAL = Hardware(cores=8, cuda=(CudaDevice("P100", (6, 0)),))
TWO = Hardware(cores=8, cuda=(CudaDevice("A100", (8, 0)), CudaDevice("P100", (6, 0))))
ROCM = Hardware(cores=8, cuda=(CudaDevice("MI300X", (9, 4)),), rocm=True)
ROCM_OLD = Hardware(cores=8, cuda=(CudaDevice("MI50", (6, 0)),), rocm=True)
XPU = Hardware(cores=8, xpu=2)
MPS = Hardware(cores=8, mps=True)


@pytest.mark.parametrize(
    ("hardware", "asked", "device", "precision"),
    [
        (CPU, {}, "cpu", "fp32"),
        (CPU_BF16, {}, "cpu", "fp32"),
        (AMPERE, {}, "cuda:0", "fp16"),
        (HOPPER, {}, "cuda:0", "fp16"),
        (TURING, {}, "cuda:0", "fp16"),
        (PASCAL, {}, "cuda:0", "fp32"),
        (TWO, {}, "cuda:0", "fp16"),
        (ROCM, {}, "cuda:0", "fp16"),
        (ROCM_OLD, {}, "cuda:0", "fp16"),
        (XPU, {}, "xpu:0", "fp16"),
        (MPS, {}, "cpu", "fp32"),
        # a device by name
        (AMPERE, {"device": "cpu"}, "cpu", "fp32"),
        (AMPERE, {"device": "cuda"}, "cuda:0", "fp16"),
        (TWO, {"device": "cuda:1"}, "cuda:1", "fp32"),
        (XPU, {"device": "xpu:1"}, "xpu:1", "fp16"),
        (MPS, {"device": "mps"}, "mps", "fp32"),
        (AMPERE, {"device": "auto"}, "cuda:0", "fp16"),
        (MPS, {"device": "auto"}, "cpu", "fp32"),
        # a precision that is there
        (AMPERE, {"precision": "fp32"}, "cuda:0", "fp32"),
        (AMPERE, {"precision": "bf16"}, "cuda:0", "bf16"),
        (AMPERE, {"precision": "bf16-autocast"}, "cuda:0", "bf16-autocast"),
        (TURING, {"precision": "fp16-autocast"}, "cuda:0", "fp16-autocast"),
        (MPS, {"device": "mps", "precision": "fp16"}, "mps", "fp16"),
        (CPU_BF16, {"precision": "bf16"}, "cpu", "bf16"),
        (CPU_BF16, {"precision": "bf16-autocast"}, "cpu", "bf16-autocast"),
        # and one that is not
        (CPU, {"precision": "bf16"}, "cpu", "fp32"),
        (CPU, {"precision": "fp16"}, "cpu", "fp32"),
        (CPU_BF16, {"precision": "fp16"}, "cpu", "fp32"),
        (CPU_BF16, {"precision": "fp16-autocast"}, "cpu", "fp32"),
        (TURING, {"precision": "bf16"}, "cuda:0", "fp32"),
        (PASCAL, {"precision": "fp16"}, "cuda:0", "fp32"),
        (TWO, {"device": "cuda:1", "precision": "fp16"}, "cuda:1", "fp32"),
        (MPS, {"device": "mps", "precision": "bf16"}, "mps", "fp32"),
        # the family that would rather have bf16
        (AMPERE, {"prefer": "bf16"}, "cuda:0", "bf16"),
        (TURING, {"prefer": "bf16"}, "cuda:0", "fp32"),
        (CPU_BF16, {"prefer": "bf16"}, "cpu", "bf16"),
        (AMPERE, {"prefer": "bf16", "precision": "fp16"}, "cuda:0", "fp16"),
    ],
)
def test_the_table(hardware: Hardware, asked: dict[str, Any], device: str, precision: str) -> None:
    plan = plan_device(hardware, **asked)
    assert (plan.device, plan.precision) == (device, precision)
    on_cpu = device == "cpu"
    assert plan.attention == ("runs" if on_cpu else "padded")
    assert plan.max_batch_tokens == (2048 if on_cpu else 16384)
    assert plan.autocast == precision.endswith("-autocast")


@pytest.mark.parametrize("hardware", [CPU, CPU_BF16, MPS, AMPERE])
@pytest.mark.parametrize("precision", ["fp16", "fp16-autocast"])
def test_fp16_is_never_planned_on_a_cpu_and_the_plan_says_why(
    hardware: Hardware, precision: Any
) -> None:
    plan = plan_device(hardware, device="cpu", precision=precision)
    assert plan.dtype == "float32"
    assert not plan.autocast
    assert f"precision fp32: {precision} is never used on a CPU" in plan.reasons


def test_a_format_the_device_does_not_compute_is_named() -> None:
    plan = plan_device(TURING, precision="bf16")
    assert "precision fp32: bf16 is not native on this cuda device" in plan.reasons


def test_a_format_the_device_does_not_compute_is_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _warn_once.cache_clear()
    asked: list[Precision] = ["auto", "bf16", "bf16", "fp16", "bf16-autocast"]
    for precision in asked:
        plan_device(CPU, precision=precision)
    plan_device(TURING, precision="bf16")
    plan_device(CPU_BF16, precision="bf16")
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == [
        "this CPU has no bf16 instructions",
        "fp16 is never used on a CPU",
        "bf16 is not native on this cuda device",
    ]
    assert caplog.messages[0].startswith("this CPU has no bf16 instructions: scoring in fp32.")


def test_mps_is_not_chosen_by_itself_and_the_plan_says_so() -> None:
    assert any("device='mps'" in reason for reason in plan_device(MPS).reasons)


@pytest.mark.parametrize(
    ("hardware", "device", "available"),
    [
        (CPU, "cuda", "cpu"),
        (CPU, "gpu", "cpu"),
        (CPU, "", "cpu"),
        (CPU, "cpu:0", "cpu"),
        (TWO, "cuda:2", "cpu, cuda:0, cuda:1"),
        (TWO, "cuda:-1", "cpu, cuda:0, cuda:1"),
        (TWO, "CUDA", "cpu, cuda:0, cuda:1"),
        (XPU, "xpu:2", "cpu, xpu:0, xpu:1"),
        (MPS, "mps:1", "cpu, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    hardware: Hardware, device: str, available: str
) -> None:
    with pytest.raises(InvalidInputError) as refused:
        plan_device(hardware, device=device)
    assert str(refused.value) == f"device {device!r} is not available here; available: {available}"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'int8'; it must be one of auto, fp32"):
        plan_device(CPU, precision="int8")  # type: ignore[arg-type]


def test_a_printed_plan_gives_a_reason_for_device_and_precision() -> None:
    lines = str(plan_device(HOPPER)).splitlines()
    assert lines[0] == "cuda:0, fp16, padded attention, batches of 16384 tokens"
    assert lines[1].startswith("  - device cuda:0: ")
    assert "H100" in lines[1]
    assert lines[2].startswith("  - precision fp16: ")


def test_a_plan_for_a_gpu_says_that_no_gpu_ran_it() -> None:
    said = "not run on a GPU by its authors: compare scores with bge-rerank verify"
    for hardware, device in ((HOPPER, "cuda"), (XPU, "xpu"), (MPS, "mps")):
        assert said in plan_device(hardware, device=device).reasons
    assert said not in plan_device(HOPPER, device="cpu").reasons


@pytest.mark.parametrize("attention", ["padded", "varlen", "efficient"])
def test_an_attention_is_planned_on_cuda_and_refused_elsewhere(attention: Any) -> None:
    plan = plan_device(HOPPER, attention=attention)
    assert plan.attention == attention
    # other kernels round differently, so scores kept under another name are not used
    assert plan.arithmetic == ("fp16" if attention == "padded" else f"fp16-{attention}")
    for hardware, device in ((HOPPER, "cpu"), (XPU, "xpu:0"), (MPS, "mps")):
        with pytest.raises(InvalidInputError, match=f"'{attention}', and {device} has no other"):
            plan_device(hardware, device=device, attention=attention)


def test_plans_are_values() -> None:
    assert plan_device(AMPERE) == plan_device(dataclasses.replace(AMPERE))
    assert hash(plan_device(CPU)) == hash(plan_device(CPU))


def test_this_machine_can_be_read_and_planned_for() -> None:
    hardware = read_hardware()
    assert hardware.cores >= 1
    assert len(hardware.cuda) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert plan_device(hardware, device="cpu").device == "cpu"
