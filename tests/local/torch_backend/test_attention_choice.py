"""The self-test of an attention at load: right ones pass, wrong ones are refused by their error."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from bge_rerank_integrations import RerankError
from bge_rerank_integrations.local.device import CudaDevice, Hardware, plan_device
from bge_rerank_integrations.local.torch_backend.attention import (
    AttentionShape,
    PaddedAttention,
    RunAttention,
    Segment,
)
from bge_rerank_integrations.local.torch_backend.cuda_attention import (
    ATTENTIONS,
    LARGEST_ERROR,
    FlatAttention,
    Kernel,
    Trial,
    check_attention,
    largest_error,
    with_checked_attention,
)
from bge_rerank_integrations.local.torch_backend.runtime import to_device
from tests.local.torch_backend import kernels

ENCODER = AttentionShape(heads=4, kv_heads=4, causal=False, scale=None)
DECODER = AttentionShape(heads=4, kv_heads=2, causal=True, scale=0.5)


def trial(shape: AttentionShape = ENCODER, **changes: Any) -> Trial:
    options: dict[str, Any] = {"windowed": False, "dtype": torch.float32, "device": "cpu"}
    return Trial(shape, 8, **{**options, **changes})


def flat(kernel: Kernel) -> Callable[..., FlatAttention]:
    return partial(FlatAttention, kernel=kernel)


def error_of(reason: str) -> float:
    return float(reason.removeprefix("attention varlen: tried now, off by "))


def refusal(kernel: Kernel, tried: Trial) -> str:
    """The message for a kernel, up to the remedy."""
    with pytest.raises(RerankError) as refused:
        check_attention("varlen", flat(kernel), tried)
    found, _, remedy = str(refused.value).partition(f" on cpu in {tried.dtype}: ")
    assert remedy == "leave attention out, or use attention='padded'"
    return found.removeprefix("attention 'varlen' ")


@pytest.mark.parametrize("shape", [ENCODER, DECODER])
@pytest.mark.parametrize("windowed", [False, True])
def test_a_right_kernel_passes_with_its_error(shape: AttentionShape, windowed: bool) -> None:
    tried = trial(shape, windowed=windowed)
    assert error_of(check_attention("varlen", flat(kernels.one_by_one), tried)) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "raised"),
    [
        (kernels.does_not_exist, "AttributeError"),
        (kernels.not_on_this_device, "NotImplementedError"),
        (kernels.gives_another_shape, "RuntimeError"),
    ],
)
def test_a_kernel_that_does_not_run_is_refused(kernel: Kernel, raised: str) -> None:
    assert refusal(kernel, trial()) == f"does not run ({raised})"


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
def test_a_kernel_that_is_wrong_is_refused_with_its_error(
    kernel: Kernel, tried: Trial, dtype: torch.dtype
) -> None:
    tried = trial(tried.shape, windowed=tried.windowed, dtype=dtype)
    assert float(refusal(kernel, tried).removeprefix("is off by ")) > LARGEST_ERROR[dtype]


def test_nan_is_not_mistaken_for_a_small_error() -> None:
    assert refusal(kernels.gives_nan, trial()) == "is off by nan"


@pytest.mark.parametrize("dtype", list(LARGEST_ERROR))
@pytest.mark.parametrize("shape", [ENCODER, DECODER])
def test_rounding_alone_never_fails(shape: AttentionShape, dtype: torch.dtype) -> None:
    builds: list[Any] = [RunAttention, PaddedAttention, flat(kernels.one_by_one)]
    for build in builds:
        error = largest_error(build, trial(shape, dtype=dtype, windowed=shape.causal))
        assert error < LARGEST_ERROR[dtype] / 2


def test_memory_that_runs_out_says_nothing_about_a_kernel() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        check_attention("varlen", flat(kernels.needs_memory), trial())


def test_where_even_the_padded_attention_is_wrong_the_device_is_not_used() -> None:
    with pytest.raises(RerankError, match=r"'padded' is off by nan on cpu .*: use device='cpu'"):
        check_attention("padded", flat(kernels.gives_nan), trial())


@pytest.mark.parametrize("name", ["varlen", "efficient"])
def test_kernels_of_cuda_do_not_run_on_a_cpu(name: Any) -> None:
    with pytest.raises(RerankError, match=f"attention '{name}' does not run"):
        check_attention(name, ATTENTIONS[name], trial())


def test_the_callers_autocast_does_not_reach_the_self_test() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        reason = check_attention("varlen", PaddedAttention, trial())
    assert error_of(reason) < 1e-5


def test_elsewhere_than_on_cuda_the_plan_stays() -> None:
    for hardware, device in ((Hardware(cores=1), "cpu"), (Hardware(cores=1, mps=True), "mps")):
        plan = plan_device(hardware, device=device)
        assert with_checked_attention(plan, ENCODER, head_size=8) == plan


def test_the_default_on_cuda_is_padded() -> None:
    plan = plan_device(Hardware(cores=1, cuda=(CudaDevice("H100", (9, 0)),)))
    assert plan.attention == "padded"


def test_an_infinite_row_stays_in_its_sequence() -> None:
    # as in half precision, where one text overflows: its neighbours are padded beside it
    for shape in (ENCODER, DECODER):
        segments = [Segment(2), Segment(5), Segment(3)]
        rows = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
        rows[:2] = torch.inf
        key = rows[:, : shape.kv_heads * 8]
        for build in (RunAttention, PaddedAttention):
            attend = build(segments, shape)
            found = attend(to_device(attend.arrays, "cpu"), rows, key, key)
            assert found[:2].isnan().any()
            assert found[2:].isfinite().all()


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
    found: torch.Tensor = attend(to_device(attend.arrays, "cpu"), query, key, value, window)
    return found


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_several_prefixes_behind_one_another(window: int | None) -> None:
    segments = [
        Segment(6), Segment(3, 0), Segment(3, 0), Segment(9), Segment(2), Segment(4, 4),
        Segment(1, 4), Segment(5, 0),
    ]  # fmt: skip
    right = rows_of(RunAttention, segments, DECODER, window)
    for build in (PaddedAttention, flat(kernels.one_by_one)):
        assert rows_of(build, segments, DECODER, window) == pytest.approx(right, abs=1e-6)


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
