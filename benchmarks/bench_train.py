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
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clock import StageClock
from training.flags import COMPILE_MODES

if TYPE_CHECKING:
    import torch

    from models.config import VARSRConfig
    from training.loop import Stage

DEFAULT_PRESET = "varsr-tiny"
TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
WARM_UP = 2
TERA, GIGA = 1e12, 1e9
DATA, FORWARD, BACKWARD, OPTIMISER, AVERAGE, REST = PHASES = (
    "data", "forward", "backward", "optimiser", "moving average", "rest")


@dataclass(frozen=True)
class Task:
    """What is trained, and how. group: samples that are degraded together (None: as the degradation has it)."""

    config: VARSRConfig
    stage: str = TRANSFORMER
    batch_size: int = 6
    precision: str = "bf16"
    checkpointing: bool = False
    compile: str | None = None
    group: int | None = None


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
    add("--group", type=int, help="samples that are degraded together (default: as dataloader/degradation.yml has it)")
    add("--steps", type=int, default=5, help="timed steps; their median counts")
    add("--output", help="JSON file for the result")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe, gemm_rate, peak_memory, reset_peak_memory
    from models.config import PRESETS, published_size
    from utils.device import keep_freed_memory
    keep_freed_memory()
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), {"fp32": torch.float32, "fp16": torch.float16,
                                                "bf16": torch.bfloat16}[args.dtype]
    config = published_size(args.depth) if args.depth else PRESETS[args.preset or DEFAULT_PRESET]
    task = Task(config, args.stage, args.batch_size, args.dtype, args.checkpointing, args.compile, args.group)
    stage = build_stage(task, device)
    rates = [gemm_rate(device, dtype)]
    reset_peak_memory(device)  # the products' matrices are no part of a step
    _, seconds = step_seconds(stage, args.steps, device)
    memory = peak_memory(device)
    rates.append(gemm_rate(device, dtype))  # a busy moment must not pass for the machine's limit
    phases, _ = measured_phases(stage, args.steps, device)
    result = {
        "model": config.name, "stage": args.stage, "dtype": args.dtype, "device": str(device),
        "batch_size": args.batch_size, "checkpointing": args.checkpointing, "compile": args.compile,
        "machine": describe(device), "gemm_tflops": max(rates) / TERA,
        **rates_of(task, seconds, phases, max(rates)), "peak_memory_gb": memory / GIGA, "phases": phases,
    }
    print_table(result)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def rates_of(task: Task, seconds: float, phases: dict[str, dict[str, float]], gemm: float) -> dict[str, float]:
    """Samples and operations a second of a step, and their share of a GEMM rate (FLOP/s)."""
    tflop = sum(phase["tflop"] for phase in phases.values())
    return {"step_seconds": seconds, "samples_per_second": task.batch_size / seconds, "tflop": tflop,
            "tflops": tflop / seconds, "share_of_gemm_rate": tflop * TERA / seconds / gemm}


def measure(stage: Stage, task: Task, gemm: float, steps: int) -> dict[str, Any]:
    """A built stage's step: seconds, rates, peak memory, phases (of fewer steps), the last loss."""
    from benchmarks.machine import peak_memory
    first, steady = step_seconds(stage, steps, stage.device)
    peak = peak_memory(stage.device)
    phases, metrics = measured_phases(stage, 1, stage.device, steps + WARM_UP)
    return {"batch_size": task.batch_size, "checkpointing": task.checkpointing, "first_seconds": first,
            **rates_of(task, steady, phases, gemm), "peak_memory_gb": peak / GIGA, "phases": phases,
            "loss": float(metrics["loss"]), "grad_norm": float(metrics["grad_norm"])}


def build_stage(task: Task, device: torch.device) -> Stage:
    """A training stage on random pictures and random weights, which are made on the device."""
    import torch

    from benchmarks.random_weights import random_model
    from dataloader.degradation import Degradation, DegradationConfig
    from dataloader.pairs import BatchLoader, ClassSource, CropSource, PairSource
    from models.initialization import initialize
    from training.tokenizer import TokenizerSettings, TokenizerStage
    from training.transformer import TransformerSettings, TransformerStage
    config, side = task.config, task.config.image_size
    classes = 1 if config.is_super_resolution else config.num_classes
    loader = BatchLoader(NoisePictures(side, classes), task.batch_size, pin_memory=device.type == "cuda")
    if task.stage == TOKENIZER:
        from models.vqvae import VQVAE
        settings = TokenizerSettings(batch_size=task.batch_size, precision=task.precision, adversarial_start=0.0)
        validation = torch.rand(1, 3, side, side)
        return TokenizerStage(VQVAE(config.vqvae), CropSource(loader), validation, settings, device)
    model = random_model(config, torch.float32, device).requires_grad_(True)
    initialize(model)
    model.transformer.checkpointing = task.checkpointing
    if task.compile:
        for block in model.transformer.blocks:
            block.compile(mode=task.compile)
    degradation = Degradation(DegradationConfig.load(**({"group": task.group} if task.group else {})))
    pairs = (PairSource(loader, degradation.and_upsample, task.group or task.batch_size) if config.is_super_resolution
             else ClassSource(loader))
    settings = TransformerSettings(batch_size=task.batch_size, precision=task.precision)
    if device.type == "cuda":  # as train.py does
        torch.set_float32_matmul_precision("high")
    return TransformerStage(model, pairs, pairs.draw(device), settings, device)


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


def step_seconds(stage: Stage, steps: int, device: torch.device, first: int = 0) -> tuple[float, float]:
    """Seconds of the first step, and of `steps` steps after `WARM_UP`: their median; on a GPU, which is waited for as
    in training, so not after each of them, their mean. first: the number of the first step."""
    from benchmarks.machine import synchronize
    numbers = count(first)

    def step() -> float:
        stage.train_step(next(numbers))
        return time.perf_counter()
    synchronize(device)
    began, first_end = time.perf_counter(), step()
    for _ in range(WARM_UP - 1):
        step()
    synchronize(device)
    ends = [time.perf_counter(), *(step() for _ in range(steps))]
    synchronize(device)
    steady = (time.perf_counter() - ends[0]) / steps if device.type == "cuda" else median(
        after - before for before, after in zip(ends, ends[1:]))
    return first_end - began, steady


def measured_phases(stage: Stage, steps: int, device: torch.device,
                    first: int = 0) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Seconds of the phases in steps that wait after each of them, and operations, which are counted in one more, whose
    metrics come along."""
    from torch.utils.flop_counter import FlopCounterMode
    with StageClock(device) as clock:
        attach(clock, stage)
        _, whole = step_seconds(stage, steps, device, first)
    taken = steps + WARM_UP
    seconds = {phase: clock.sums[phase] / taken for phase in PHASES}
    seconds[REST] = max(whole - sum(seconds.values()), 0.0)
    with FlopCounterMode(display=False, custom_mapping=cpu_attention()) as counter, \
            StageClock(device, lambda: float(counter.get_total_flops())) as flops:
        attach(flops, stage)
        metrics = stage.train_step(first + taken)
    operations = {phase: flops.sums[phase] for phase in PHASES}
    operations[REST] = counter.get_total_flops() - sum(operations.values())
    return {phase: {"seconds": seconds[phase], "tflop": operations[phase] / TERA} for phase in PHASES
            if seconds[phase] > 0}, metrics


def attach(clock: StageClock, stage: Stage) -> None:
    """A clock on the phases of a stage's steps."""
    import torch

    from training import tokenizer as tokenizer_stage
    from training import transformer as transformer_stage
    from training.tokenizer import TokenizerStage
    if isinstance(stage, TokenizerStage):
        module = tokenizer_stage
        clock.wrap(stage.crops, "prepare", lambda *_: DATA)
        for owner, name in ((stage.model, "encode"), (stage.model.quantizer, "forward"),
                            (stage.model, "decode_unclamped"), (stage, "_loss")):
            clock.wrap(owner, name, lambda *_: FORWARD)
    else:
        module = transformer_stage
        clock.wrap(stage.pairs, "prepare", lambda *_: DATA)
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
