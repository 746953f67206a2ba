"""Draw the course of one or more trainings: `python docs/draw_training.py TARGET.png LOG.jsonl [LOG.jsonl ...]`.

Logs that are given one after another are drawn one after another, as rounds of one training. Needs matplotlib
(requirements-dev.txt).
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

TRAIN, REPORT = "train", "report"
PANELS = (("psnr_y", "PSNR-Y, dB"), ("ssim_y", "SSIM-Y"), ("gmsd", "GMSD"), ("high_frequency", "high-frequency energy"))
LOSS = "pixel"
WINDOW = 10  # lines of the log that a point of the loss is the mean of


def read(path: Path) -> list[dict]:
    """Lines of a log. Raises OSError or ValueError."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(logs: list[list[dict]], target: Path) -> None:
    """The loss, then every metric of the validations beside bicubic's."""
    figure = Figure(figsize=(15, 3), layout="constrained")
    loss, *panels = figure.subplots(1, 1 + len(PANELS))
    offset = 0
    for number, rows in enumerate(logs):
        trained = [row for row in rows if row["event"] == TRAIN and LOSS in row]
        groups = [trained[i:i + WINDOW] for i in range(0, len(trained), WINDOW)]
        loss.plot([offset + group[-1]["iteration"] for group in groups],
                  [sum(row[LOSS] for row in group) / len(group) for group in groups], color=f"C{number}")
        reports = [row for row in rows if row["event"] == REPORT]
        places = [offset + row["iteration"] for row in reports]
        for panel, (key, _) in zip(panels, PANELS):
            panel.plot(places, [row[key] for row in reports], "o-", color=f"C{number}")
            if number == 0:
                panel.axhline(reports[0][f"{key}_bicubic"], color="gray", linestyle="--", label="bicubic")
        offset = max(row["iteration"] for row in rows) + offset
    for panel, title in zip((loss, *panels), ("L1 in training", *(title for _, title in PANELS))):
        panel.set_title(title)
        panel.set_xlabel("iterations")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(target, dpi=80)


def main(argv: list[str] | None = None) -> int:
    """Parse, read, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("logs", type=Path, nargs="+")
    args = parser.parse_args(argv)
    try:
        draw([read(path) for path in args.logs], args.target)
    except (OSError, ValueError) as error:
        print(f"draw_training: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
