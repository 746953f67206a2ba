"""Time one generation stage by stage: `python benchmarks/bench_generate.py --preset varsr-d24 --dtype bf16`.

Prints seconds and the share of the machine's own measured limits (GEMM rate, reading memory) for the prefix encoder,
every scale, the refiner and the decoder, and writes the table as JSON. A preset runs on random weights (speed does not
depend on their values); `--model` runs real ones.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clock import StageClock
from benchmarks.subject import add_subject_flags, load_subject
from utils.flags import EIGHT_BIT

DEFAULT_PRESET = "varsr-tiny"
TERA, GIGA = 1e12, 1e9


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_flags(parser)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--cfg", type=float, help="guidance (the model's own default); 0 runs no unconditional rows")
    parser.add_argument("--fast", action="store_true", help="the settings of the scripts' --fast")
    parser.set_defaults(preset=DEFAULT_PRESET, runs=3, dtype="fp32")
    return parser


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


def stage_work(config, options, fastvar, batch: int, weight_size: int, key_size: int) -> dict[str, tuple[int, int]]:
    """Operations and bytes to read of each stage; a guided scale has twice as many rows as pictures.

    Convolutions and the refiner are bound by operations: their bytes are left out.
    """
    from benchmarks import flops
    scales = config.vqvae.scales
    rows = [batch * (2 if options.cfg > 0 and k >= options.cfg_from_scale else 1) for k in range(len(scales))]
    head = sum(count * flops.head_flops(config, k) for k, count in enumerate(rows))
    work = {"prefix encoder": (batch * flops.prefix_flops(config), 0), "head": (head, 0),
            "refiner": (rows[-1] * flops.refiner_flops(config, config.refiner_steps(options)), 0),
            "decoder": (batch * flops.decoder_flops(config.vqvae), 0)}
    traffic = flops.scale_bytes(config, weight_size, key_size, rows, fastvar)
    for k, total in enumerate(flops.scale_flops(config, fastvar)):
        work[f"scale {scales[k]}"] = rows[k] * total, traffic[k]
    return work


def settings(args: argparse.Namespace, config):
    """Sampling options and token pruning that the flags ask for."""
    import dataclasses

    from inference.settings import fast_generation, fast_pruning
    options = fast_generation(config) if args.fast else config.generation
    if args.cfg is not None:
        options = dataclasses.replace(options, cfg=args.cfg)
    return options, fast_pruning(config) if args.fast else None


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe, gemm_rate, peak_memory, read_rate, synchronize
    model, load_seconds = load_subject(args)
    device, dtype = model.device, model.dtype
    options, fastvar = settings(args, model.config)
    size = model.config.image_size
    inputs = ((torch.rand(args.batch_size, 3, size, size, device=device), None) if model.config.is_super_resolution
              else (None, torch.zeros(args.batch_size, dtype=torch.long, device=device)))
    runs, rates = [], [gemm_rate(device, dtype)]
    # What is recorded as a CUDA graph cannot be timed in parts.
    clock = attach(model, device) if model.graphs is None else StageClock(device)
    for _ in range(args.runs + 1):  # the first is the warm-up
        clock.sums.clear()
        start = time.perf_counter()
        model.generate(*inputs, options=options, fastvar=fastvar)
        synchronize(device)
        runs.append((time.perf_counter() - start, dict(clock.sums)))
    peak = peak_memory(device)
    rates.append(gemm_rate(device, dtype))  # a busy moment must not pass for the machine's limit
    total, stages = sorted(runs[1:], key=lambda run: run[0])[args.runs // 2]
    weight_size = 1 if args.dtype in EIGHT_BIT else dtype.itemsize
    work = stage_work(model.config, options, fastvar, args.batch_size, weight_size, dtype.itemsize)
    tflop = sum(flops for flops, _ in work.values()) / TERA
    result = {
        "model": args.model or args.preset, "dtype": args.dtype, "device": str(device), "batch_size": args.batch_size,
        "cfg": options.cfg, "fast": args.fast, "compile": args.compile,
        "machine": describe(device), "gemm_tflops": max(rates) / TERA,
        "read_gb_per_second": read_rate(device) / GIGA, "load_seconds": load_seconds, "first_seconds": runs[0][0],
        "seconds": total, "all_seconds": [run[0] for run in runs[1:]], "tflop": tflop,
        "share_of_gemm_rate": tflop * TERA / total / max(rates), "peak_memory_gb": peak / GIGA,
        "stages": {name: {"seconds": value, "tflop": work.get(name, (0, 0))[0] / TERA,
                          "gigabytes": work.get(name, (0, 0))[1] / GIGA} for name, value in stages.items()},
    }
    print_table(result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def print_table(result: dict) -> None:
    """The result as text. A stage's limit is the longer of its operations and its reading at the machine's rates."""
    gemm, read = result["gemm_tflops"], result["read_gb_per_second"]
    ways = "".join(f", --{way}" for way in ("fast", "compile") if result[way])
    print(f"{result['model']} {result['dtype']} on {result['device']}, batch {result['batch_size']}, "
          f"cfg {result['cfg']:g}{ways}; GEMM rate {gemm:.3f} TFLOP/s, reading {read:.1f} GB/s")
    print(f"{'stage':<20}{'seconds':>9}{'TFLOP':>9}{'of GEMM':>9}{'GB read':>9}{'of read':>9}{'of limit':>9}")
    for name, row in result["stages"].items():
        by_gemm, by_read = row["tflop"] / gemm, row["gigabytes"] / read
        shares = "".join(f"{value / row['seconds']:>9.1%}" for value in (by_read, max(by_gemm, by_read)))
        print(f"{name:<20}{row['seconds']:>9.3f}{row['tflop']:>9.3f}{by_gemm / row['seconds']:>9.1%}"
              f"{row['gigabytes']:>9.2f}{shares}")
    print(f"{'total':<20}{result['seconds']:>9.3f}{result['tflop']:>9.3f}{result['share_of_gemm_rate']:>9.1%}")
    print(f"loading {result['load_seconds']:.2f} s, first picture {result['first_seconds']:.2f} s, "
          f"then {result['seconds']:.2f} s, peak memory {result['peak_memory_gb']:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
