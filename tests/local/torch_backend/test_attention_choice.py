"""The self-test at load: it takes the first kernel that is right, and says what was wrong."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from bge_rerank_integrations import RerankError
from bge_rerank_integrations.local.device import Attention, CudaDevice, Hardware, plan_device
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    PaddedAttention,
    RunAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.transfer import to_device
from bge_rerank_integrations.local.torch_backend.varlen_attention import (
    ATTENTIONS,
    CANDIDATES,
    LARGEST_ERROR,
    FlatAttention,
    Kernel,
    Trial,
    choose_attention,
    largest_error,
    with_attention,
)
from tests.local.torch_backend import kernels

ENCODER = AttentionShape(heads=4, kv_heads=4, causal=False, scale=None)
DECODER = AttentionShape(heads=4, kv_heads=2, causal=True, scale=0.5)


def trial(shape: AttentionShape = ENCODER, **changes: Any) -> Trial:
    options: dict[str, Any] = {"windowed": False, "dtype": torch.float32, "device": "cpu"}
    return Trial(shape, 8, **{**options, **changes})


def flat(kernel: Kernel) -> Callable[..., FlatAttention]:
    return partial(FlatAttention, kernel=kernel)


def reason_against(kernel: Kernel, tried: Trial) -> str:
    """What is said of a kernel that stands before a right one, which then is taken."""
    candidates: dict[Attention, Any] = {"varlen": flat(kernel), "padded": PaddedAttention}
    chosen, reasons = choose_attention(candidates, tried)
    assert chosen == "padded"
    assert reasons[-1].startswith("attention padded: tried now, off by ")
    (against,) = reasons[:-1]
    return against.removeprefix("attention not varlen: ")


@pytest.mark.parametrize("shape", [ENCODER, DECODER])
@pytest.mark.parametrize("windowed", [False, True])
def test_the_first_that_is_right_is_taken_and_no_other_is_tried(
    shape: AttentionShape, windowed: bool
) -> None:
    candidates: dict[Attention, Any] = {
        "varlen": flat(kernels.one_by_one),
        "efficient": flat(kernels.does_not_exist),
    }
    chosen, reasons = choose_attention(candidates, trial(shape, windowed=windowed))
    assert chosen == "varlen"
    (reason,) = reasons
    assert float(reason.removeprefix("attention varlen: tried now, off by ")) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "raised"),
    [
        (kernels.does_not_exist, "AttributeError"),
        (kernels.not_on_this_device, "NotImplementedError"),
        (kernels.gives_another_shape, "RuntimeError"),
    ],
)
def test_a_kernel_that_does_not_run_is_passed_over_by_name(kernel: Kernel, raised: str) -> None:
    assert reason_against(kernel, trial()) == f"it does not run ({raised})"


@pytest.mark.parametrize(
    ("kernel", "tried"),
    [
        (kernels.mixes_sequences_up, trial()),
        (kernels.mixes_sequences_up, trial(DECODER)),
        (kernels.sees_one_key_too_few, trial()),
        (kernels.takes_every_head_alike, trial()),
        (kernels.counts_from_the_first_key, trial(DECODER)),
        (kernels.forgets_the_scale, trial(DECODER)),
        (kernels.ignores_the_window, trial(DECODER, windowed=True)),
        (kernels.window_off_by_one, trial(DECODER, windowed=True)),
    ],
)
@pytest.mark.parametrize("dtype", list(LARGEST_ERROR))
def test_a_kernel_that_is_wrong_is_passed_over_with_its_error(
    kernel: Kernel, tried: Trial, dtype: torch.dtype
) -> None:
    tried = trial(tried.shape, windowed=tried.windowed, dtype=dtype)
    error = float(reason_against(kernel, tried).removeprefix("tried now, off by "))
    assert error > LARGEST_ERROR[dtype]


def test_nan_is_not_mistaken_for_a_small_error() -> None:
    assert reason_against(kernels.gives_nan, trial()) == "tried now, off by nan"


@pytest.mark.parametrize("dtype", list(LARGEST_ERROR))
@pytest.mark.parametrize("shape", [ENCODER, DECODER])
def test_rounding_alone_never_fails(shape: AttentionShape, dtype: torch.dtype) -> None:
    for build in (RunAttention, PaddedAttention, flat(kernels.one_by_one)):
        error = largest_error(build, trial(shape, dtype=dtype, windowed=shape.causal))
        assert error < LARGEST_ERROR[dtype] / 2


def test_memory_that_runs_out_says_nothing_about_a_kernel() -> None:
    candidates: dict[Attention, Any] = {
        "varlen": flat(kernels.needs_memory),
        "padded": PaddedAttention,
    }
    with pytest.raises(torch.OutOfMemoryError):
        choose_attention(candidates, trial())


def test_where_nothing_is_right_loading_fails_and_says_what_was_tried() -> None:
    candidates: dict[Attention, Any] = {
        "varlen": flat(kernels.not_on_this_device),
        "efficient": flat(kernels.gives_nan),
    }
    with pytest.raises(RerankError) as failed:
        choose_attention(candidates, trial())
    message = str(failed.value)
    assert "no attention computes right on cpu in torch.float32" in message
    assert "not varlen: it does not run (NotImplementedError)" in message
    assert "not efficient: tried now, off by nan" in message
    assert "device='cpu'" in message


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", CANDIDATES["cuda"])
def test_what_cuda_would_try_is_either_right_here_or_does_not_run(name: Attention) -> None:
    # torch has no CPU kernel for the first two
    candidates = {name: ATTENTIONS[name]}
    if name in ("varlen", "efficient"):
        with pytest.raises(RerankError, match=f"not {name}: it does not run"):
            choose_attention(candidates, trial())
    else:
        chosen, _ = choose_attention(candidates, trial())
        assert chosen == name


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_leaves_causal_models_to_others() -> None:
    with pytest.raises(RerankError, match=r"not nested: it does not run \(NotImplementedError\)"):
        choose_attention({"nested": ATTENTIONS["nested"]}, trial(DECODER))


def test_the_callers_autocast_does_not_reach_the_self_test() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        chosen, reasons = choose_attention({"padded": PaddedAttention}, trial())
    assert chosen == "padded"
    assert float(reasons[0].rpartition(" ")[2]) < 1e-5


def test_elsewhere_than_on_cuda_the_plan_stays() -> None:
    for hardware, device in ((Hardware(cores=1), "cpu"), (Hardware(cores=1, mps=True), "mps")):
        plan = plan_device(hardware, device=device)
        assert with_attention(plan, ENCODER, head_size=8) == plan


def test_a_cuda_plan_waits_for_the_self_test() -> None:
    plan = plan_device(Hardware(cores=1, cuda=(CudaDevice("H100", (9, 0)),)))
    assert plan.attention == CANDIDATES["cuda"][-1], "what a device surely has"


def rows_of(
    build: Callable[..., Any],
    segments: Sequence[Segment],
    shape: AttentionShape,
    window: int | None,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = sum(segment.length for segment in segments)
    query, key, value = (
        torch.randn(rows, heads * 8, generator=generator)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    attend = build(segments, shape)
    found: torch.Tensor = attend(to_device(attend.arrays, "cpu"), query, key, value, window=window)
    return found


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_several_prefixes_behind_one_another(window: int | None) -> None:
    # a flat kernel takes any prefixes, as the runs of a CPU do
    segments = [
        Segment(6), Segment(3, 0), Segment(3, 0), Segment(9), Segment(2), Segment(4, 4),
        Segment(1, 4), Segment(5, 0),
    ]  # fmt: skip
    right = rows_of(RunAttention, segments, DECODER, window)
    found = rows_of(flat(kernels.one_by_one), segments, DECODER, window)
    assert found == pytest.approx(right, abs=1e-6)


def test_a_sequence_of_two_tokens_by_hand() -> None:
    # one head of one number: the first query sees keys 0 and ln 3 as 1 : 3, the second as 1 : 1
    shape = AttentionShape(heads=1, kv_heads=1, causal=False, scale=1.0)
    query, key = torch.tensor([[1.0], [0.0], [5.0]]), torch.tensor([[0.0], [3.0], [7.0]]).log1p()
    key[1] = torch.tensor(3.0).log()
    value = torch.tensor([[8.0], [0.0], [2.0]])
    for build in (RunAttention, PaddedAttention, flat(kernels.one_by_one)):
        attend = build([Segment(2), Segment(1)], shape)
        found = attend(to_device(attend.arrays, "cpu"), query, key, value)
        assert found.flatten().tolist() == pytest.approx([2.0, 4.0, 2.0])
