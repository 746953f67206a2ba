"""Time training steps: `python benchmarks/bench_train.py --preset varsr-tiny --batch_size 6`.

Samples per second, operations per second and their share of the machine's measured GEMM rate, and peak memory; then the
same step phase by phase: data (degradation on the device), forward, backward, optimiser, moving average. Pictures and
weights are random: speed does not depend on them. The published size on a GPU:

    python benchmarks/bench_train.py --depth 24 --batch_size 16 --device cuda --output results.json

Operations are counted while a step runs (`torch.utils.flop_counter`), so those that checkpointing repeats count again.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clock import StageClock
from training.flags import COMPILE_MODES

if TYPE_CHECKING:
    import torch

    from training.loop import Stage

DEFAULT_PRESET = "varsr-tiny"
TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
WARM_UP = 2
TERA, GIGA = 1e12, 1e9
DATA, FORWARD, BACKWARD, OPTIMISER, AVERAGE, REST = PHASES = (
    "data", "forward", "backward", "optimiser", "moving average", "rest")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", choices=(TRANSFORMER, TOKENIZER), default=TRANSFORMER,
        help="transformer: super-resolution or class-to-image, as the preset is")
    add("--preset", help=f"a preset of models/config.py (default: {DEFAULT_PRESET})")
    add("--depth", type=int, help="in its place, a size of the published family; 24 is VARSR's")
    add("--batch_size", type=int, default=6)
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="bf16")
    add("--device", default="cpu")
    add("--checkpointing", action="store_true", help="recompute activations of blocks")
    add("--compile", choices=[mode for mode in COMPILE_MODES.values() if mode], help="compile the transformer's blocks")
    add("--steps", type=int, default=5, help="timed steps; their median counts")
    add("--output", help="JSON file for the result")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe, gemm_rate, peak_memory
    from utils.device import keep_freed_memory
    keep_freed_memory()
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), {"fp32": torch.float32, "fp16": torch.float16,
                                                "bf16": torch.bfloat16}[args.dtype]
    stage, name = build_stage(args, device)
    rates = [gemm_rate(device, dtype)]
    seconds = step_seconds(stage, args.steps, device)
    memory = peak_memory(device)
    rates.append(gemm_rate(device, dtype))  # a busy moment must not pass for the machine's limit
    phases, operations = measured_phases(stage, args, device)
    tflop = sum(operations.values()) / TERA
    result = {
        "model": name, "stage": args.stage, "dtype": args.dtype, "device": str(device), "batch_size": args.batch_size,
        "checkpointing": args.checkpointing, "compile": args.compile, "machine": describe(device),
        "gemm_tflops": max(rates) / TERA, "step_seconds": seconds, "samples_per_second": args.batch_size / seconds,
        "tflop": tflop, "tflops": tflop / seconds, "share_of_gemm_rate": tflop * TERA / seconds / max(rates),
        "peak_memory_gb": memory / GIGA,
        "phases": {phase: {"seconds": phases[phase], "tflop": operations[phase] / TERA} for phase in PHASES
                   if phases[phase] > 0},
    }
    print_table(result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def build_stage(args: argparse.Namespace, device: torch.device) -> tuple[Stage, str]:
    """A training stage on random pictures, and the model's name."""
    import torch

    from dataloader.degradation import Degradation, DegradationConfig
    from dataloader.pairs import BatchLoader, ClassSource, CropSource, PairSource
    from models.config import PRESETS, published_size
    from models.initialization import initialize
    from models.varsr import VARSR
    from training.tokenizer import TokenizerSettings, TokenizerStage
    from training.transformer import TransformerSettings, TransformerStage
    config = published_size(args.depth) if args.depth else PRESETS[args.preset or DEFAULT_PRESET]
    side = config.image_size

    classes = 1 if config.is_super_resolution else config.num_classes
    loader = BatchLoader(NoisePictures(side, classes), args.batch_size)
    if args.stage == TOKENIZER:
        from models.vqvae import VQVAE
        settings = TokenizerSettings(batch_size=args.batch_size, precision=args.dtype, adversarial_start=0.0)
        crops, validation = CropSource(loader), torch.rand(1, 3, side, side)
        return TokenizerStage(VQVAE(config.vqvae), crops, validation, settings, device), config.name
    model = VARSR(config)
    initialize(model)
    model.transformer.checkpointing = args.checkpointing
    if args.compile:
        for block in model.transformer.blocks:
            block.compile(mode=args.compile)
    degrade = Degradation(DegradationConfig.load()).and_upsample
    pairs = PairSource(loader, degrade, args.batch_size) if config.is_super_resolution else ClassSource(loader)
    validation = pairs.draw(torch.device("cpu"))
    settings = TransformerSettings(batch_size=args.batch_size, precision=args.dtype)
    return TransformerStage(model, pairs, validation, settings, device), config.name


class NoisePictures:
    """Samples of noise, drawn once and handed out again: what loading costs is measured elsewhere."""

    def __init__(self, side: int, classes: int) -> None:
        from dataloader.entries import Failures
        self.failures = Failures()
        random = np.random.default_rng(0)
        self.pictures, self.labels = random.integers(0, 256, (8, side, side, 3), np.uint8), range(classes)

    def sample(self, position: int, seed: int) -> tuple[np.ndarray, int]:
        """(S, S, 3) uint8 and a class."""
        return self.pictures[position % len(self.pictures)], self.labels[position % len(self.labels)]


def step_seconds(stage: Stage, steps: int, device: torch.device) -> float:
    """Median of whole steps."""
    from statistics import median

    from benchmarks.machine import synchronize
    times = []
    for iteration in range(WARM_UP + steps):
        start = time.perf_counter()
        stage.train_step(iteration)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[WARM_UP:])


def measured_phases(stage: Stage, args: argparse.Namespace,
                    device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the phases in steps that wait after each of them, and operations, which are counted in one more."""
    from torch.utils.flop_counter import FlopCounterMode
    clock = StageClock(device)
    attach(clock, stage)
    whole = step_seconds(stage, args.steps, device)
    count = WARM_UP + args.steps
    seconds = {phase: clock.sums[phase] / count for phase in PHASES}
    seconds[REST] = max(whole - sum(seconds.values()), 0.0)
    with FlopCounterMode(display=False, custom_mapping=cpu_attention()) as counter:
        flops = StageClock(device, lambda: float(counter.get_total_flops()))
        attach(flops, stage)
        stage.train_step(count)
    operations = {phase: flops.sums[phase] for phase in PHASES}
    operations[REST] = counter.get_total_flops() - sum(operations.values())
    return seconds, operations


def attach(clock: StageClock, stage: Stage) -> None:
    """A clock on the phases of a stage's steps. It stays: the process measures nothing else afterwards."""
    import torch

    from training import tokenizer as tokenizer_stage
    from training import transformer as transformer_stage
    from training.tokenizer import TokenizerStage
    if isinstance(stage, TokenizerStage):
        module = tokenizer_stage
        clock.wrap(stage.crops, "draw", lambda *_: DATA)
        for owner, name in ((stage.model, "encode"), (stage.model.quantizer, "forward"),
                            (stage.model, "decode_unclamped"), (stage, "_loss")):
            clock.wrap(owner, name, lambda *_: FORWARD)
    else:
        module = transformer_stage
        clock.wrap(stage.pairs, "draw", lambda *_: DATA)
        clock.wrap(stage.parallel, "forward", lambda *_: FORWARD)
    clock.wrap(torch.Tensor, "backward", lambda *_: BACKWARD)
    clock.wrap(module, "clipped_step", lambda *_: OPTIMISER)
    clock.wrap(stage.average, "update", lambda *_: AVERAGE)


def cpu_attention() -> dict:
    """Operations, from shapes, of the attention kernel of CPUs, which the counter does not know."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count
    aten = torch.ops.aten
    return {aten._scaled_dot_product_flash_attention_for_cpu:
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            aten._scaled_dot_product_flash_attention_for_cpu_backward:
            lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)}


def print_table(result: dict) -> None:
    """The result as text."""
    print(f"{result['model']}, {result['stage']} stage, {result['dtype']} on {result['device']}, batch "
          f"{result['batch_size']}{', checkpointing' if result['checkpointing'] else ''}; GEMM rate "
          f"{result['gemm_tflops']:.3f} TFLOP/s")
    print(f"{'phase':<16}{'seconds':>9}{'TFLOP':>9}{'of GEMM':>9}")
    for phase, row in result["phases"].items():
        share = row["tflop"] / row["seconds"] / result["gemm_tflops"]
        print(f"{phase:<16}{row['seconds']:>9.3f}{row['tflop']:>9.3f}{share:>9.1%}")
    print(f"{'step':<16}{result['step_seconds']:>9.3f}{result['tflop']:>9.3f}{result['share_of_gemm_rate']:>9.1%}")
    print(f"{result['samples_per_second']:.2f} samples/s, {result['tflops']:.3f} TFLOP/s, peak memory "
          f"{result['peak_memory_gb']:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
