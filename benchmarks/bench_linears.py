"""Compare 8-bit linear layers on a CPU: `python benchmarks/bench_linears.py`.

Ours (`models/speed/packed.py`), PyTorch's `quantize_dynamic` and, where `torchao` is installed, its W8A8 dynamic layer,
as it comes and compiled: milliseconds, error against float64, and how much a token's result changes with the batch
around it.
"""
from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SHAPES = ((2048, 1536, 4608), (2048, 1536, 6144), (2048, 6144, 1536), (512, 1536, 6144))  # tokens, inputs, outputs
RUNS = 6
MILLI = 1e-3


def layers(linear) -> dict:
    """The ways to compute a `Linear`, by name."""
    import torch
    from torch import nn

    from models.speed.packed import PackedLinear, QuantizedLinear, exact_levels
    found = {"fp32, packed": PackedLinear(linear.weight, linear.bias),
             "int8, ours": QuantizedLinear(linear.weight, linear.bias, levels=exact_levels()),
             "quantize_dynamic": torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear})}
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ModuleNotFoundError:
        return found
    plain = nn.Sequential(nn.Linear(linear.in_features, linear.out_features)).requires_grad_(False)
    plain[0].load_state_dict(linear.state_dict())
    quantize_(plain, Int8DynamicActivationInt8WeightConfig())
    return {**found, "torchao": plain, "torchao, compiled": torch.compile(plain)}


def main(argv: list[str] | None = None) -> int:
    """Measure and print a line a shape and layer."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    warnings.simplefilter("ignore")
    import torch

    from utils.device import keep_freed_memory
    keep_freed_memory()
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        for tokens, inputs, outputs in SHAPES:
            linear = torch.nn.Linear(inputs, outputs)
            x = torch.randn(tokens, inputs) * torch.rand(tokens, 1)
            exact = x.double() @ linear.weight.double().t() + linear.bias.double()
            for name, layer in layers(linear).items():
                y, alone = layer(x), layer(x[:1])
                start = time.perf_counter()
                for _ in range(RUNS):
                    layer(x)
                seconds = (time.perf_counter() - start) / RUNS
                error, moved = (y - exact).norm() / exact.norm(), (y[:1] - alone).norm() / alone.norm()
                print(f"{tokens}x{inputs} to {outputs}  {name:18s} {seconds / MILLI:7.1f} ms  error {error:.1e}  "
                      f"changes with the batch by {moved:.0e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
