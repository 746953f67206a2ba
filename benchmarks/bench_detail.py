"""What more detail would cost: `python benchmarks/bench_detail.py`.

Adds detail to the luma of restored pictures of `testset/sample` and measures them as bench_quality.py does: by an
unsharp mask, as noise whose local strength is that of the detail which HR has and the picture lacks, and as a share of
that detail itself. The last two look at HR: they say what a model could gain, and are no restorations.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_quality import COLUMNS, quality, restorer, sample_set

if TYPE_CHECKING:
    from torch import Tensor

UNSHARP_AMOUNTS = (1.0, 3.0)
NOISE_STRENGTHS = (0.5, 0.75)  # of the strength that is missing
TRUE_SHARE = 0.25
NOISE_SIGMA, STRENGTH_SIGMA = 0.6, 4.0  # pixels: grain of the noise, reach of a local strength
Change = Callable[["Tensor", "Tensor"], "Tensor"]  # luma of picture and reference (H, W) to what is added


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/varsr-tiny", help="model folder, published file or hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Restore once, then change and measure."""
    args = build_parser().parse_args(argv)
    from utils.luminance import smooth_luma
    pictures = sample_set()
    restored = [picture.float().cpu() for picture in map(restorer(args.model, args), pictures.lr)]
    columns = {key: column for key, column in COLUMNS.items() if key != "niqe"}
    print("| | " + " | ".join(title for title, _ in columns.values()) + " |\n|---|" + "---|" * len(columns))
    for name, change in changes(args.seed).items():
        changed = [picture + change(smooth_luma(picture), smooth_luma(reference)) / 255
                   for picture, reference in zip(restored, pictures.references, strict=True)]
        values = quality((picture.clamp(0, 1) for picture in changed), pictures.references)
        print(f"| {name} | {' | '.join(form.format(values[key]) for key, (_, form) in columns.items())} |", flush=True)
    return 0


def changes(seed: int) -> dict[str, Change]:
    """What is measured, by name."""
    found: dict[str, Change] = {"as restored": lambda picture, reference: picture * 0}
    for amount in UNSHARP_AMOUNTS:
        found[f"unsharp mask, amount {amount:g}"] = lambda picture, reference, amount=amount: amount * detail(picture)
    for strength in NOISE_STRENGTHS:
        found[f"noise, {strength:g} of the missing strength"] = (
            lambda picture, reference, strength=strength:
            strength * missing_strength(picture, reference) * grain(picture, seed))
    found[f"{TRUE_SHARE:g} of the missing detail"] = (
        lambda picture, reference: TRUE_SHARE * detail(reference - picture))
    return found


def detail(plane: Tensor) -> Tensor:
    """A plane (H, W) without its Gaussian blur."""
    from utils.metrics import DETAIL_SIGMA
    return plane - blur(plane, DETAIL_SIGMA)


def missing_strength(picture: Tensor, reference: Tensor) -> Tensor:
    """Local deviation of the detail that a picture needs beside its own to have the reference's strength."""
    wanted, present = (blur(detail(plane).square(), STRENGTH_SIGMA) for plane in (reference, picture))
    return (wanted - present).clamp(min=0).sqrt()


def grain(like: Tensor, seed: int) -> Tensor:
    """Noise of unit deviation in the band of the detail."""
    import torch
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    band = detail(blur(noise, NOISE_SIGMA))
    return band / band.std()


def blur(plane: Tensor, sigma: float) -> Tensor:
    """A plane (H, W) blurred, mirrored beyond its borders."""
    import torch.nn.functional as F

    from utils.metrics import gaussian_taps, smooth
    reach = round(3 * sigma)
    padded = F.pad(plane[None, None], [reach] * 4, mode="reflect")
    return smooth(padded, gaussian_taps(2 * reach + 1, sigma, padded))[0, 0]


if __name__ == "__main__":
    sys.exit(main())
