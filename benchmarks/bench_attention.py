"""Time the published model's attention: `python benchmarks/bench_attention.py`.

Generation, all heads at once against head by head: decided how `models.attention.attend` works on CPUs. Training,
forward and backward, one call under a block-causal mask against one call a level: decided for `BlockCausal`.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from benchmarks.machine import describe, gemm_rate
from models.attention import BlockCausal
from models.config import PRESETS
from models.varsr import VARSR

ROWS, HEADS, HEAD_DIM = 2, 24, 64  # one guided picture
SHAPES = ((1025, 1025), (576, 2240), (1024, 3264))  # queries, keys
TRAINED = (("varsr-d24", 1), ("varsr-tiny", 6))  # preset, batch
RUNS = 5
TERA, MILLI = 1e12, 1e-3


def head_by_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Plain products, whose scores fit the cache."""
    result = torch.empty_like(q)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            result[row, head] = (q[row, head] @ k[row, head].t()).softmax(-1) @ v[row, head]
    return result


def seconds(function: Callable[[], object]) -> float:
    """Best of a few runs."""
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def main(argv: list[str] | None = None) -> int:
    """Print both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    cpu = torch.device("cpu")
    print(describe(cpu))
    generation(cpu)
    training()
    return 0


def training() -> None:
    """Forward and backward of one block's attention over the whole sequence."""
    for preset, batch in TRAINED:
        with torch.device("meta"):
            transformer = VARSR(PRESETS[preset]).transformer
        levels, config = transformer.level_lengths, transformer.config
        ways = {"by level": BlockCausal(levels), "with autograd's sums": BlockCausal(levels, recomputed=True)}
        level = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(levels))
        mask = level[:, None] >= level
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(batch, config.num_heads, len(level), config.head_dim, dtype=dtype,
                                   requires_grad=True) for _ in range(3))
            masked = seconds(lambda: F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=1.0).sum().backward())  # noqa: B023
            print(f"{preset}, batch {batch}, {dtype}: mask {masked / MILLI:6.1f} ms", end="")
            for name, causal in ways.items():
                taken = seconds(lambda: causal.attend(q, k, v).sum().backward())  # noqa: B023
                print(f", {name} {taken / MILLI:6.1f} ms", end="")
            print()


@torch.inference_mode()
def generation(cpu: torch.device) -> None:
    """Forward, with keys of a cache."""
    for dtype in (torch.float32, torch.bfloat16):
        rate = gemm_rate(cpu, dtype)
        print(f"{dtype}, GEMM rate {rate / TERA:.3f} TFLOP/s")
        for queries, keys in SHAPES:
            q, k, v = (torch.randn(ROWS, HEADS, length, HEAD_DIM).to(dtype) for length in (queries, keys, keys))
            limit = 4 * ROWS * HEADS * queries * keys * HEAD_DIM / rate
            together = seconds(lambda: F.scaled_dot_product_attention(q, k, v, scale=1.0))  # noqa: B023
            single = seconds(lambda: head_by_head(q, k, v))  # noqa: B023
            print(f"{queries:5d} queries, {keys:5d} keys: SDPA {together / MILLI:6.1f} ms, "
                  f"head by head {single / MILLI:6.1f} ms, limit {limit / MILLI:6.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
