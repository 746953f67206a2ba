"""Draw the README's comparison: `python docs/draw_comparison.py docs/images/comparison.jpg [--model FOLDER]`.

Details of sample pictures: bicubic, restored and original.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAMPLE = ROOT / "testset" / "sample"
DETAILS = {"dogs": (120, 250), "fig": (150, 120), "rocket": (230, 80), "coffee": (170, 80)}  # left, top
WIDTH, HEIGHT, GAP, LABEL, FONT = 256, 192, 8, 24, 16  # pixels
COLUMNS = ("bicubic", "VARSR (embedded model)", "original")
QUALITY = 92


def main(argv: list[str] | None = None) -> int:
    """Restore, cut, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "varsr-tiny"))
    args = parser.parse_args(argv)

    from models.varsr import VARSR
    from utils.generation import RestoreSettings
    from utils.images import read_image, to_pillow
    from utils.resample import upsample
    from utils.restore import restore
    model = VARSR.from_pretrained(args.model)
    settings = RestoreSettings(model.config.generation)
    sheet = Image.new("RGB", (len(COLUMNS) * (WIDTH + GAP) - GAP, LABEL + len(DETAILS) * (HEIGHT + GAP) - GAP),
                      "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT)
    for column, title in enumerate(COLUMNS):
        pen.text((column * (WIDTH + GAP) + 4, 2), title, fill="black", font=font)
    for row, (name, (left, top)) in enumerate(DETAILS.items()):
        lr, hr = (read_image(SAMPLE / kind / f"{name}.png") for kind in ("LR", "HR"))
        for column, picture in enumerate((upsample(lr, hr.shape[-1] / lr.shape[-1]), restore(model, lr, settings), hr)):
            detail = to_pillow(picture).crop((left, top, left + WIDTH, top + HEIGHT))
            sheet.paste(detail, (column * (WIDTH + GAP), LABEL + row * (HEIGHT + GAP)))
    sheet.save(args.target, quality=QUALITY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
