"""How much the windows of a large picture show: `python benchmarks/bench_seams.py`.

Restores a mosaic of the sample pictures (512x512 LR pixels) on two grids of windows and from two seeds, and prints the
steps across window borders as a ratio to steps in the same places of the other grid, where windows have no border, and
how far the results agree; and the steps across the border of a part that is drawn anew. docs/large_images.md and
docs/redo.md explain the figures.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.subject import ROOT, model_name
from evaluation.metrics.full_reference import psnr_y
from inference.redo import redo
from inference.restore import restore, restore_with_tokens
from inference.settings import RestoreSettings
from inference.windows import WindowAxis
from models.config import GenerationConfig
from models.varsr import VARSR
from pictures.rgb import read_image

SAMPLE = ROOT / "testset" / "sample" / "HR"
LR_SIDE, TILE = 512, 128  # LR pixels of the mosaic and of each picture in it
# LR pixels by overlap: half a step of the windows, so that the borders of one grid lie amid the other's windows
SHIFT = {0.25: 12, 0.0: 16}
MARGIN = 128  # pixels at the picture's own edges that are not judged
REDONE_LR, REDONE_BOX = 48, (40, 36, 150, 155)  # LR pixels of a picture, of whose result this part is drawn anew


def mosaic() -> Tensor:
    """(3, 512, 512): the middles of the sample pictures, taken in turn."""
    pictures = [read_image(path) for path in sorted(SAMPLE.iterdir())]
    middles = [picture[:, (picture.shape[1] - TILE) // 2:, (picture.shape[2] - TILE) // 2:][:, :TILE, :TILE]
               for picture in pictures]
    count = LR_SIDE // TILE
    rows = [torch.cat([middles[(row * count + column) % len(middles)] for column in range(count)], dim=2)
            for row in range(count)]
    return torch.cat(rows, dim=1)


def both_grids(model: VARSR, lr: Tensor, settings: RestoreSettings) -> tuple[Tensor, Tensor]:
    """The restored picture, and its inside restored on the shifted grid."""
    shift = SHIFT[settings.overlap]
    return restore(model, lr, settings), restore(model, lr[:, shift:-shift, shift:-shift], settings)


def border_ratio(model: VARSR, picture: Tensor, shifted: Tensor, overlap: float) -> float:
    """Steps across the windows' borders of `picture`, over the steps in the same places of `shifted`.

    `shifted` is of another grid, whose windows have no border there. So the picture's own content, and the model's
    own cells of 8 pixels, on whose borders all windows begin, are in both.
    """
    side, factor = model.config.vqvae.side, model.config.vqvae.downsampling
    axis = WindowAxis(picture.shape[1] // factor, side, overlap)
    offset = SHIFT[overlap] * 4
    borders = {factor * cell - offset for start in axis.starts for cell in (start, start + side)}
    inner = sorted(border for border in borders if MARGIN <= border <= shifted.shape[1] - MARGIN)
    cut = picture[:, offset:-offset, offset:-offset]
    return sum(_gradient(cut, d, inner) / _gradient(shifted, d, inner) for d in (1, 2)) / 2


def redone_border_ratio(redone: Tensor, original: Tensor, box: tuple[int, int, int, int]) -> float:
    """Steps across the border of a part (top, left, bottom, right) that was drawn anew, over the steps in the same
    places of the original picture, which has no border there."""
    top, left, bottom, right = box

    def steps(picture: Tensor) -> float:
        return _gradient(picture[:, :, left:right], 1, [top, bottom]) \
            + _gradient(picture[:, top:bottom], 2, [left, right])
    return steps(redone) / steps(original)


def redone_ratios(model: VARSR, lr: Tensor, options: GenerationConfig, seeds: Sequence[int] = (1, 2)) -> list[float]:
    """`redone_border_ratio` of the pictures in the mosaic's first row, each with these seeds."""
    top, left, bottom, right = REDONE_BOX
    start, ratios = (TILE - REDONE_LR) // 2, []
    for column in range(start, LR_SIDE, TILE):
        part = lr[:, start:start + REDONE_LR, column:column + REDONE_LR]
        original, state = restore_with_tokens(model, part, RestoreSettings(options))
        mask = torch.zeros(original.shape[1:], dtype=torch.bool)
        mask[top:bottom, left:right] = True
        redone = (redo(model, part, state, mask, RestoreSettings(options.varied(), seed=seed), original)
                  for seed in seeds)
        ratios += [redone_border_ratio(each, original, REDONE_BOX) for each in redone]
    return ratios


def _gradient(picture: Tensor, axis: int, borders: list[int]) -> float:
    """Mean absolute step of (3, H, W) across these pixel borders along an axis."""
    steps = picture.diff(dim=axis).abs().mean(dim=[other for other in range(3) if other != axis])
    return steps[torch.tensor(borders) - 1].mean().item()


def agreement(picture: Tensor, shifted: Tensor, overlap: float) -> float:
    """PSNR-Y in dB between the results of both grids, away from the picture's own edges."""
    offset, inside = 4 * SHIFT[overlap], slice(MARGIN, -MARGIN)
    same_place = picture[:, offset:-offset, offset:-offset]
    return psnr_y(same_place[:, inside, inside], shifted[:, inside, inside])


def measure(model: VARSR, fidelity: float | None = None) -> dict[str, float]:
    """All figures of a model, by default at its own fidelity."""
    options = model.config.generation
    if fidelity is not None:
        options = dataclasses.replace(options, fidelity=fidelity)
    lr, settings = mosaic(), RestoreSettings(options)
    picture, shifted = both_grids(model, lr, settings)
    other_seed = restore(model, lr, dataclasses.replace(settings, seed=1))
    plain = dataclasses.replace(settings, overlap=0.0)
    hard, hard_shifted = both_grids(model, lr[:, :LR_SIDE // 2, :LR_SIDE // 2], plain)
    return {"border_ratio": border_ratio(model, picture, shifted, settings.overlap),
            "border_ratio_without_overlap": border_ratio(model, hard, hard_shifted, plain.overlap),
            "redone_border_ratio": sum(redone := redone_ratios(model, lr, options)) / len(redone),
            "shifted_grid_db": agreement(picture, shifted, settings.overlap),
            "other_seed_db": psnr_y(picture, other_seed)}


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    from benchmarks.machine import describe
    from utils.device import choose_dtype
    from utils.flags import DTYPES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "varsr-tiny"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--fidelity", type=float, help="the model's own by default")
    parser.add_argument("--output", help="write the figures and the machine's description as JSON")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    dtype = choose_dtype(args.dtype, device)
    figures = measure(VARSR.from_pretrained(args.model, dtype=dtype, device=device).for_inference(),
                      args.fidelity)
    for name, value in figures.items():
        print(f"{name:<32}{value:>8.3f}")
    if args.output:
        record = {"model": model_name(args.model), "dtype": str(dtype), "machine": describe(device), **figures}
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
