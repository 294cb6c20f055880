"""The fastest matrix products this machine does, which bound every encoder on it.

`python -m benchmarks.gemm_peak` prints FLOP/s by number format, as JSON.
"""

import json
import statistics
import time

import torch

from bge_rerank_integrations.local.device import read_hardware
from bge_rerank_integrations.local.torch_backend.linear import choose_gemm_path, linear

ROWS, WIDTH, FFN = 2048, 768, 3072
"""A batch of our default budget through the feed-forward layer of bge-reranker-base."""


def gemm_flops(dtype: torch.dtype) -> float:
    """FLOP/s of one linear layer on the better of torch's own product and prepacked oneDNN."""
    path, _ = choose_gemm_path(dtype)
    x, weight = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(FFN, WIDTH).to(dtype)
    layer = linear(weight, None, path)
    times = []
    for _ in range(40):
        begin = time.perf_counter()
        layer(x)
        times.append(time.perf_counter() - begin)
    # the best tenth: a ceiling is not to be lowered by what else the machine did
    best = statistics.median(sorted(times)[: len(times) // 10])
    return 2 * ROWS * WIDTH * FFN / best


def main() -> None:
    """Print the rates of float32 and, where the CPU has it, bfloat16."""
    with torch.inference_mode():
        rates = {"fp32": gemm_flops(torch.float32)}
        if read_hardware().cpu_bf16:
            rates["bf16"] = gemm_flops(torch.bfloat16)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
