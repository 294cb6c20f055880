"""The token budget of a CUDA device, by numbers that can be checked by hand."""

import dataclasses
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

from bge_rerank_integrations.local.device import bytes_per_token, token_budget
from tests.local.torch_backend.encoder_models import CPU, build_encoder, flat, random_sequences

GB = 10**9
LARGE = bytes_per_token(1024, 4096, inner_copies=2, bytes_each=2)


def test_bytes_per_token_of_the_known_models() -> None:
    # of large: twice 1024 and twice 4096 values, two bytes each; of base twice 768 and twice 3072
    assert LARGE == 20_480
    assert bytes_per_token(768, 3072, inner_copies=2, bytes_each=2) == 15_360
    # v2-gemma in bfloat16: (2 * 2048 + 3 * 16384) * 2
    assert bytes_per_token(2048, 16384, inner_copies=3, bytes_each=2) == 106_496
    # a model with a narrow feed-forward part: attention's eight vectors decide
    assert bytes_per_token(100, 100, inner_copies=2, bytes_each=4) == 3200


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (80 * GB, 16384),
        (1 * GB, 16384),  # 0.6e9 / 20480 = 29296, more than the most
        # 0.6 * 0.5e9 / 20480 = 14648, of which 14 * 1024 = 14336 are whole thousands
        (GB // 2, 14336),
        (GB // 10, 2048),  # 2929
        (GB // 25, 1024),  # 1171
        (GB // 100, 1024),  # 292: the engine splits what does not fit
        (0, 1024),
    ],
)
def test_a_budget_is_three_fifths_of_what_is_free(free: int, tokens: int) -> None:
    assert token_budget(free, LARGE, most=16384) == tokens


def test_a_cpu_keeps_its_own_budget(tmp_path: Path) -> None:
    encoder = flat(build_encoder(tmp_path, "xlmr"))
    assert encoder.plan.max_batch_tokens == CPU.max_batch_tokens
    assert not any("free" in reason for reason in encoder.plan.reasons)


@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_the_model_of_memory_is_what_torch_allocates(tmp_path: Path, kind: str) -> None:
    # inner = 4 * hidden, as in the known models
    hidden = 64
    folder = build_encoder(
        tmp_path, kind, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=3
    )
    encoder = flat(folder, plan=dataclasses.replace(CPU, attention="padded"))
    batch = random_sequences([50] * 20)  # a CPU widens so many tokens at once, as CUDA does all
    encoder.run(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        encoder.run(batch)
    alive = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    modelled = 1000 * bytes_per_token(hidden, 4 * hidden, inner_copies=2, bytes_each=4)
    assert 0.8 < most / modelled <= 1.0
