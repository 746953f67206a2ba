"""Time one generation stage by stage: `python benchmarks/bench_generate.py --preset varsr-d24 --dtype bf16`.

Prints seconds and the share of the machine's own measured limits (GEMM rate, reading memory) for the prefix encoder,
every scale, the refiner and the decoder, and writes the table as JSON. A preset runs on random weights (speed does not
depend on their values); `--model` runs real ones.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clock import StageClock, timed_calls
from benchmarks.subject import add_subject_flags, load_subject
from utils.flags import EIGHT_BIT

if TYPE_CHECKING:
    import torch

    from models.config import GenerationConfig, VARSRConfig
    from models.fastvar import FastVARConfig
    from models.varsr import VARSR

DEFAULT_PRESET = "varsr-tiny"
TERA, GIGA = 1e12, 1e9
STAGE_RUNS = 2


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject_flags(parser)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--cfg", type=float, help="guidance (the model's own default); 0 runs no unconditional rows")
    parser.add_argument("--fast", action="store_true", help="the settings of the scripts' --fast")
    parser.set_defaults(preset=DEFAULT_PRESET, runs=3, dtype="fp32")
    return parser


@dataclass(frozen=True)
class Case:
    """One kind of generation: pictures at a time, sampling, token pruning."""

    batch_size: int
    options: GenerationConfig
    fastvar: FastVARConfig | None = None

    @classmethod
    def of(cls, config: VARSRConfig, batch_size: int, fast: bool = False, cfg: float | None = None) -> Case:
        """The model's own settings, or those of the scripts' --fast; cfg: guidance in place of theirs."""
        import dataclasses

        from inference.settings import fast_generation, fast_pruning
        options = fast_generation(config) if fast else config.generation
        if cfg is not None:
            options = dataclasses.replace(options, cfg=cfg)
        return cls(batch_size, options, fast_pruning(config) if fast else None)


def generation(model: VARSR, case: Case) -> Callable[[], torch.Tensor]:
    """What generates a batch of a case from noise, decoder included."""
    import torch
    size = model.config.image_size
    inputs = ((torch.rand(case.batch_size, 3, size, size, device=model.device), None)
              if model.config.is_super_resolution else (None, torch.zeros(case.batch_size, dtype=torch.long)))
    return lambda: model.generate(*inputs, options=case.options, fastvar=case.fastvar)


def measure(model: VARSR, case: Case, gemm: float, seconds: float = 1.0, weight_size: int | None = None,
            runs: int = 3) -> dict[str, Any]:
    """Seconds of a batch and of a picture, operations a second and their share of a GEMM rate (FLOP/s), peak memory,
    and, where nothing is recorded as a graph, a table of the stages, from runs that wait after each of them.

    seconds: for the timed calls, `runs` at least. weight_size: bytes of a weight, where it is not the model's own type.
    """
    from benchmarks.machine import peak_memory
    call, device = generation(model, case), model.device
    times = timed_calls(call, device, seconds, least=runs)
    peak = peak_memory(device)
    work = case_work(model, case, weight_size)
    tflop = sum(flops for flops, _ in work.values()) / TERA
    result = {"batch_size": case.batch_size, "first_seconds": times.first, "seconds": times.steady,
              "seconds_per_picture": times.steady / case.batch_size, "calls": len(times.following),
              "fastest_seconds": min(times.following), "tflop": tflop, "tflops": tflop / times.steady,
              "share_of_gemm_rate": tflop * TERA / times.steady / gemm, "peak_memory_gb": peak / GIGA,
              "finite": bool(call().isfinite().all())}
    if stages := stage_seconds(model, call):
        result["stages"] = stage_rows(stages, work)
    return result


def stage_seconds(model: VARSR, call: Callable[[], object]) -> dict[str, float]:
    """Mean seconds of each stage, from runs of their own: the clock waits for the device around each of them, which a
    run that is timed as a whole must not. Nothing of a model that is recorded as a CUDA graph, which has no parts."""
    if model.graphs is not None:
        return {}
    with attach(model, model.device) as clock:
        for _ in range(STAGE_RUNS):
            call()
    return {name: total / STAGE_RUNS for name, total in clock.sums.items()}


def attach(model: VARSR, device: torch.device) -> StageClock:
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


def stage_rows(seconds: dict[str, float], work: dict[str, tuple[int, int]]) -> dict[str, dict[str, float]]:
    """What each stage took, computed and had to read."""
    return {name: {"seconds": value, "tflop": work.get(name, (0, 0))[0] / TERA,
                   "gigabytes": work.get(name, (0, 0))[1] / GIGA} for name, value in seconds.items()}


def case_work(model: VARSR, case: Case, weight_size: int | None = None) -> dict[str, tuple[int, int]]:
    """`stage_work` of a model's generation."""
    key_size = model.dtype.itemsize
    return stage_work(model.config, case.options, case.fastvar, case.batch_size, weight_size or key_size, key_size)


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


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)

    from benchmarks.machine import describe, gemm_rate, peak_memory, read_rate, reset_peak_memory
    model, load_seconds = load_subject(args)
    device, dtype = model.device, model.dtype
    case = Case.of(model.config, args.batch_size, args.fast, args.cfg)
    generate = generation(model, case)
    rates = [gemm_rate(device, dtype)]
    reset_peak_memory(device)  # the products' matrices are no part of a generation
    times = timed_calls(generate, device, 0.0, least=args.runs, warm_up=0)  # the first one warms up
    peak, total = peak_memory(device), times.steady
    stages = stage_seconds(model, generate)
    rates.append(gemm_rate(device, dtype))  # a busy moment must not pass for the machine's limit
    work = case_work(model, case, 1 if args.dtype in EIGHT_BIT else None)
    tflop = sum(flops for flops, _ in work.values()) / TERA
    result = {
        "model": args.model or args.preset, "dtype": args.dtype, "device": str(device), "batch_size": args.batch_size,
        "cfg": case.options.cfg, "fast": args.fast, "compile": args.compile,
        "machine": describe(device), "gemm_tflops": max(rates) / TERA,
        "read_gb_per_second": read_rate(device) / GIGA, "load_seconds": load_seconds, "first_seconds": times.first,
        "seconds": total, "all_seconds": times.following, "tflop": tflop,
        "share_of_gemm_rate": tflop * TERA / total / max(rates), "peak_memory_gb": peak / GIGA,
        "stages": stage_rows(stages, work),
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
