"""Time one generation stage by stage: `python benchmarks/bench_generate.py --preset varsr-d24 --dtype bf16`.

Prints seconds, TFLOP/s and the share of the machine's own measured GEMM rate for the prefix encoder, every scale,
the refiner and the decoder, and writes the table as JSON. A preset runs on random weights (speed does not depend on
their values); `--model` runs real ones.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import DTYPES

WEIGHT_STD = 0.02
TERA, GIGA = 1e12, 1e9


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="varsr-tiny", help="a preset of models/config.py, on random weights")
    parser.add_argument("--model", help="a model folder, published file or hub id instead of a preset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--cfg", type=float, help="guidance (the model's own default); 0 runs no unconditional rows")
    parser.add_argument("--runs", type=int, default=3, help="timed generations; the median is reported")
    parser.add_argument("--output", help="JSON file for the results")
    return parser


def random_model(preset: str, dtype, device):
    """A preset filled with small random weights, made directly in the wanted type."""
    import torch

    from models.config import PRESETS
    from models.varsr import VARSR
    with torch.device("meta"):
        model = VARSR(PRESETS[preset])
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=WEIGHT_STD)
        for buffer in model.buffers():
            buffer.zero_()
    model.transformer.reset_rope()
    return model.eval().requires_grad_(False).channels_last()


class StageClock:
    """Adds up the seconds of the calls it wraps, by stage."""

    def __init__(self, device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: object, method: str, stage: Callable[..., str]) -> None:
        """Time every call of a method; `stage` names it from the call's arguments."""
        from benchmarks.machine import synchronize
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            synchronize(self.device)
            start = time.perf_counter()
            result = original(*args, **kwargs)
            synchronize(self.device)
            self.seconds[stage(*args)] += time.perf_counter() - start
            return result

        owner.__dict__[method] = timed  # on the instance, past nn.Module's own bookkeeping


def attach(model, device) -> StageClock:
    """A clock on every stage of a model."""
    clock = StageClock(device)
    scales = model.config.vqvae.scales
    if model.transformer.prefix_encoder is not None:
        clock.wrap(model.transformer.prefix_encoder, "forward", lambda *_: "prefix encoder")
    clock.wrap(model.transformer, "forward_level", lambda x, k, *_: f"scale {scales[k]}")
    clock.wrap(model.transformer, "logits", lambda *_: "head")
    clock.wrap(model.transformer, "modulations", lambda *_: "class modulations")
    clock.wrap(model.refiner, "sample", lambda *_: "refiner")
    clock.wrap(model.vqvae, "decode", lambda *_: "decoder")
    return clock


def stage_flops(config, batch: int, rows: int) -> dict[str, int]:
    """Operations of each stage; a guided generation has twice as many rows as pictures."""
    from benchmarks import flops
    scales = config.vqvae.scales
    head = 2 * config.transformer.width * config.vqvae.vocab_size
    counts = {"prefix encoder": batch * flops.prefix_flops(config),
              "head": rows * head * sum(side * side for side in scales),
              "refiner": rows * flops.refiner_flops(config), "decoder": batch * flops.decoder_flops(config.vqvae)}
    for side, total in zip(scales, flops.scale_flops(config)):
        counts[f"scale {side}"] = rows * (total - side * side * head)
    return counts


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)
    import dataclasses

    import torch

    from benchmarks.machine import describe, gemm_rate, peak_memory, synchronize
    from models.varsr import VARSR
    from utils.allocator import keep_freed_memory

    keep_freed_memory()  # as the scripts do
    device, dtype = torch.device(args.device), getattr(torch, DTYPES[args.dtype])
    rate = gemm_rate(device, dtype)
    start = time.perf_counter()
    model = (VARSR.from_pretrained(args.model, dtype=dtype, device=device) if args.model
             else random_model(args.preset, dtype, device))
    model.for_inference()
    load_seconds = time.perf_counter() - start
    options = model.config.generation
    if args.cfg is not None:
        options = dataclasses.replace(options, cfg=args.cfg)
    rows = args.batch_size * (2 if options.cfg > 0 else 1)
    size = model.config.image_size
    inputs = ((torch.rand(args.batch_size, 3, size, size, device=device), None) if model.config.is_super_resolution
              else (None, torch.zeros(args.batch_size, dtype=torch.long, device=device)))
    runs = []
    clock = attach(model, device)
    for _ in range(args.runs + 1):  # the first is the warm-up
        clock.seconds.clear()
        start = time.perf_counter()
        model.generate(*inputs, options=options)
        synchronize(device)
        runs.append((time.perf_counter() - start, dict(clock.seconds)))
    rate = max(rate, gemm_rate(device, dtype))  # a busy moment must not pass for the machine's limit
    first = runs[0][0]
    total, stages = sorted(runs[1:], key=lambda run: run[0])[args.runs // 2]
    counts = stage_flops(model.config, args.batch_size, rows)
    result = {
        "model": args.model or args.preset, "dtype": args.dtype, "device": str(device), "batch_size": args.batch_size,
        "cfg": options.cfg, "machine": describe(device), "gemm_tflops": rate / TERA, "load_seconds": load_seconds,
        "first_seconds": first, "seconds": total, "tflop": sum(counts.values()) / TERA,
        "share_of_gemm_rate": sum(counts.values()) / total / rate, "peak_memory_gb": peak_memory(device) / GIGA,
        "stages": {name: {"seconds": value, "tflop": counts.get(name, 0) / TERA} for name, value in stages.items()},
    }
    print_table(result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def print_table(result: dict) -> None:
    """The result as text."""
    rate = result["gemm_tflops"]
    print(f"{result['model']} {result['dtype']} on {result['device']}, batch {result['batch_size']}, "
          f"cfg {result['cfg']:g}; GEMM rate {rate:.3f} TFLOP/s")
    print(f"{'stage':<20}{'seconds':>9}{'TFLOP':>9}{'TFLOP/s':>9}{'of GEMM':>9}")
    rows = dict(result["stages"])
    rows["total"] = {"seconds": result["seconds"], "tflop": result["tflop"]}
    for name, row in rows.items():
        speed = row["tflop"] / row["seconds"]
        print(f"{name:<20}{row['seconds']:>9.3f}{row['tflop']:>9.3f}{speed:>9.3f}{speed / rate:>9.1%}")
    print(f"first generation {result['first_seconds']:.2f} s, peak memory {result['peak_memory_gb']:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
