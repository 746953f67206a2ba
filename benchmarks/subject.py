"""What the benchmarks run: a model as the scripts load it, the pictures it restores, how far two results are apart."""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.flags import DTYPES, EIGHT_BIT

if TYPE_CHECKING:
    from torch import Tensor

    from inference.settings import RestoreSettings
    from models.varsr import VARSR

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "testset" / "sample" / "LR"


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, on what, how often."""
    add = parser.add_argument
    add("--preset", help="a preset of models/config.py, on random weights: speed alone")
    add("--model", help="a model folder, published file or hub id: speed and quality")
    add("--device", default="cpu")
    add("--dtype", choices=(*DTYPES, *EIGHT_BIT), default="bf16")
    add("--compile", action="store_true", help="as the scripts' flag")
    add("--runs", type=int, default=1, help="timed runs of each setting; the fastest counts")
    add("--output", help="JSON file for the results")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Where and how a benchmark of pictures computes, and where its results go."""
    add = parser.add_argument
    add("--device", default="cpu")
    add("--dtype", choices=tuple(DTYPES), default="bf16")
    add("--seed", type=int, default=0)
    add("--output", help="JSON file for the results")


def add_plot_flag(parser: argparse.ArgumentParser) -> None:
    """Drawing instead of measuring."""
    parser.add_argument("--plot", nargs="+", metavar="FILE", help="draw: the PNG, then the results to draw")


def measure_or_draw(parser: argparse.ArgumentParser, argv: list[str] | None,
                    measure: Callable[[argparse.Namespace], dict],
                    draw: Callable[[str, list[str]], None]) -> int:
    """The course of a benchmark of settings: draw results (--plot), or measure and write the result."""
    args = parser.parse_args(argv)
    if args.plot:
        draw(args.plot[0], args.plot[1:])
        return 0
    if bool(args.preset) == bool(args.model):
        parser.error("give --preset (speed) or --model (speed and quality)")
    result = measure(args)
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def load_subject(args: argparse.Namespace) -> tuple[VARSR, float]:
    """The model of --model or --preset, loaded and made fast as the scripts do, and the seconds that took.

    A preset is written to a temporary folder by another process first, and loaded like any other.
    """
    import torch

    from inference.settings import prepare
    from models.varsr import VARSR
    from utils.device import choose_dtype, keep_freed_memory

    from .machine import synchronize
    keep_freed_memory()
    device = torch.device(args.device)
    dtype = choose_dtype(args.dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        if not args.model:
            subprocess.run([sys.executable, "-m", "benchmarks.random_weights", args.preset,
                            str(dtype).removeprefix("torch."), folder], cwd=ROOT, check=True)
        start = time.perf_counter()
        model = prepare(VARSR.from_pretrained(args.model or folder, dtype=dtype, device=device),
                          args.dtype if args.dtype in EIGHT_BIT else None, args.compile)
        synchronize(device)
        return model, time.perf_counter() - start


def model_name(source: str) -> str:
    """What results call a model: what lies in the repository by its path from the root on, all else as it was given."""
    path = Path(source).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) and path.exists() else source


def plain_model(args: argparse.Namespace, source: str | None = None) -> VARSR:
    """The model of --model, or another, in --dtype on --device, ready for inference."""
    import torch

    from inference.settings import prepare
    from models.varsr import VARSR
    from utils.device import choose_dtype, keep_freed_memory
    keep_freed_memory()
    device = torch.device(args.device)
    return prepare(VARSR.from_pretrained(source or args.model, dtype=choose_dtype(args.dtype, device), device=device))


class Subject:
    """A model and the pictures it restores: the sample set, or one random window for random weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from pictures.rgb import read_image
        self.runs, self.has_meaning = args.runs, bool(args.model)
        self.model, _ = load_subject(args)
        if args.model:
            self.pictures = [read_image(path) for path in sorted(SAMPLES.iterdir())]
        else:
            side = round(self.model.config.image_size / self.model.config.generation.scale)
            self.pictures = [torch.rand(3, side, side)]
        self.batch_size = 4 if args.model else 1

    def best(self, settings: RestoreSettings) -> tuple[float, list[Tensor]]:
        """Seconds of the fastest run over all pictures, and its results; a first one, which also pays for what these
        settings need once (kernels for their shapes, graphs), does not count."""
        self._restore_all(settings)
        return min((self._restore_all(settings) for _ in range(self.runs)), key=lambda run: run[0])

    def _restore_all(self, settings: RestoreSettings) -> tuple[float, list[Tensor]]:
        from inference.restore import restore
        start = time.perf_counter()
        results = [restore(self.model, lr, settings) for lr in self.pictures]
        return time.perf_counter() - start, results

    def agreement(self, results: list[Tensor], plain: list[Tensor]) -> dict[str, float]:
        """Mean PSNR-Y and SSIM-Y of results to the plain run's; nothing for random weights."""
        from evaluation.metrics.full_reference import psnr_y, ssim_y
        if not self.has_meaning:
            return {}
        return {"psnr_y": sum(map(psnr_y, results, plain)) / len(plain),
                "ssim_y": sum(map(ssim_y, results, plain)) / len(plain)}


def row_text(row: dict) -> str:
    """A result on one line."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in row.items())
