"""What the codes contribute to a picture: `python benchmarks/bench_codes.py`.

Windows of `testset/sample` are decoded from the generated latent, from that without the codes of the larger scales,
without any codes, and from the right codes, which a user does not have. Everything else is the same: LR features,
correction, detail branch. `--sheet` shows some of them side by side.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_quality import COLUMNS, quality
from benchmarks.subject import ROOT

if TYPE_CHECKING:
    from torch import Tensor

    from models.varsr import VARSR

WINDOWS, BATCH = 24, 8
KEPT_SIDE = 8  # largest scale whose codes stay in the second row
SHOWN = 6
SHOWN_COLUMNS = ("psnr_y", "ssim_y", "high_frequency", "st_lpips")


def main(argv: list[str] | None = None) -> int:
    """Generate, decode, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "varsr-tiny"))
    parser.add_argument("--fidelity", type=float, help="the model's own by default")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    args = parser.parse_args(argv)

    import torch

    from dataloader.held_out import pairs_of_folder
    from models.varsr import VARSR
    from pictures.rgb import save_picture, upsample
    from pictures.sheets import SheetLayout, comparison_sheet
    model = VARSR.from_pretrained(args.model)
    pairs = pairs_of_folder(ROOT / "testset" / "sample", model.config.image_size, WINDOWS)
    guides = torch.stack([upsample(lr, pairs.target.shape[-1] / lr.shape[-1]) for lr in pairs.lr])
    made: dict[str, list[Tensor]] = {"bicubic": list(guides)}
    for part in torch.arange(len(guides)).split(BATCH):
        for name, latent in latents(model, guides[part], pairs.target[part]).items():
            made.setdefault(name, []).extend(model.decode(latent, guides[part], args.fidelity))
    print("| | " + " | ".join(COLUMNS[key][0] for key in SHOWN_COLUMNS) + " |\n|---|" + "---|" * len(SHOWN_COLUMNS))
    for name, pictures in made.items():
        values = quality(pictures, list(pairs.target))
        cells = [COLUMNS[key][1].format(values[key]) if key in values else "" for key in SHOWN_COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |")
    if args.sheet:
        rows = {str(i): {name: pictures[i] for name, pictures in made.items()} | {"HR": pairs.target[i]}
                for i in range(0, len(guides), len(guides) // SHOWN)}
        save_picture(comparison_sheet(rows, SheetLayout(per_line=1)), args.sheet)
    return 0


def latents(model: VARSR, guides: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Latents (B, c, N, N) for LR pictures (B, 3, S, S) at output size and their HR pictures, by what is in them."""
    import torch
    coarse: list[Tensor] = []

    def keep(step) -> None:
        if step.side <= KEPT_SIDE:
            coarse.append(step.f_hat)
    generated = model.generate_latent(guides, on_scale=keep)
    with torch.no_grad():
        right = model.vqvae.quantizer.encode(model.vqvae.encode(targets * 2 - 1)).f_hat
    return {"generated codes": generated, f"up to scale {KEPT_SIDE}": coarse[-1],
            "no codes": torch.zeros_like(generated), "the right codes": right}


if __name__ == "__main__":
    sys.exit(main())
