"""Draw docs/images/architecture.png from a real run of the embedded model: `python docs/draw_architecture.py`.

Needs matplotlib (requirements-dev.txt).
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from models.varsr import VARSR, ScaleStep
from pictures.rgb import TensorSource, read_image, result_size, upsample_region

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "testset" / "sample" / "LR" / "cat.png"
TARGET = ROOT / "docs" / "images" / "architecture.png"
PICTURES, CODES, PREFIX, RESIDUAL = {}, {"cmap": "twilight"}, {"cmap": "viridis"}, {"cmap": "RdBu"}
LEFT, MIDDLE, RIGHT = 0.11, (0.235, 0.75), 0.89  # columns of the figure, as shares of its width
TOP, BOTTOM = 0.70, 0.27


def run(model: VARSR) -> dict:
    """Everything that the figure shows, of one window."""
    size = model.config.image_size
    source = TensorSource(read_image(SAMPLE))
    height, width = result_size(source, model.config.generation.scale)
    lr = upsample_region(source, (height, width), (height - size) // 2, (width - size) // 2, size, size)[None]
    steps: list[ScaleStep] = []
    latent = model.generate_latent(lr, seed=0, on_scale=steps.append)
    with torch.no_grad():
        prefix = model.transformer.prefix_encoder(lr * 2 - 1)[0]
    side = model.config.vqvae.side
    return {"lr": lr[0], "prefix": prefix.norm(dim=-1).view(side, side), "steps": steps,
            "decoded": [model.decode(step.f_hat, lr)[0] for step in steps],
            "residual": (latent - steps[-1].f_hat)[0].mean(0), "result": model.decode(latent, lr)[0]}


def show(figure: Figure, x: float, y: float, side: float, picture: torch.Tensor, title: str, style: dict) -> None:
    """A square picture around a place of the figure, its title above."""
    aspect = figure.get_figwidth() / figure.get_figheight()
    axes = figure.add_axes((x - side / 2, y - side * aspect / 2, side, side * aspect))
    values = picture.permute(1, 2, 0).clamp(0, 1) if picture.ndim == 3 else picture
    axes.imshow(values, interpolation="nearest", **style)
    axes.set_title(title, fontsize=9, pad=4)
    axes.set_xticks([])
    axes.set_yticks([])


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float], label: str = "",
          lift: float = 0.02) -> None:
    """From one place of the figure to another, what happens on the way written above its middle."""
    figure.add_artist(FancyArrowPatch(start, end, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=13,
                                      color="0.35"))
    figure.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + lift, label, ha="center", fontsize=8, color="0.25")


def main() -> int:
    """Run, draw, write."""
    model = VARSR.from_pretrained(ROOT / "checkpoints" / "varsr-tiny")
    seen, figure = run(model), Figure(figsize=(15, 5.4))
    scales = model.config.vqvae.scales
    step = (MIDDLE[1] - MIDDLE[0]) / (len(scales) - 1)
    show(figure, LEFT - 0.045, TOP, 0.095, seen["lr"], "LR picture, enlarged", PICTURES)
    show(figure, LEFT - 0.045, BOTTOM, 0.095, seen["prefix"], "prefix tokens", PREFIX)
    arrow(figure, (LEFT - 0.045, 0.51), (LEFT - 0.045, 0.462), "prefix encoder", 0.035)
    for k, (now, decoded) in enumerate(zip(seen["steps"], seen["decoded"], strict=True)):
        x = MIDDLE[0] + k * step
        show(figure, x, TOP, step * 0.86, decoded, "", PICTURES)
        codes = now.codes[0].view(now.side, now.side)
        show(figure, x, BOTTOM, step * 0.86, codes, f"{now.side}x{now.side} codes", CODES)
        arrow(figure, (x, 0.415), (x, 0.565))
    arrow(figure, (LEFT + 0.008, BOTTOM), (MIDDLE[0] - step * 0.47, BOTTOM), "")
    centre = sum(MIDDLE) / 2
    figure.text(centre, 0.07, "transformer: every map is predicted from the prefix and all maps before it, all of its "
                "tokens at once", ha="center", fontsize=10)
    figure.text(centre, 0.88, "the latent so far, decoded: quantised residuals add up over the scales", ha="center",
                fontsize=10)
    show(figure, RIGHT + 0.045, BOTTOM, 0.095, seen["residual"], "residual of the refiner", RESIDUAL)
    show(figure, RIGHT + 0.045, TOP, 0.095, seen["result"], "restored", PICTURES)
    arrow(figure, (MIDDLE[1] + step * 0.47, BOTTOM), (RIGHT - 0.008, BOTTOM), "diffusion\nrefiner")
    arrow(figure, (RIGHT + 0.045, 0.44), (RIGHT + 0.045, 0.515), "")
    arrow(figure, (MIDDLE[1] + step * 0.47, TOP), (RIGHT - 0.008, TOP), "+ residual,\ndecoder")
    figure.savefig(TARGET, dpi=90)
    return 0


if __name__ == "__main__":
    sys.exit(main())
