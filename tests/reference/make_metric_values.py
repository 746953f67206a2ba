"""Write metric_values.json: what pyiqa 0.1.16 and pypiqe 1.2 say of the ten pairs of tests/metric_pairs.py.

    pip install pyiqa pypiqe && python tests/reference/make_metric_values.py
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAIRS = 10


def pyiqa_metrics() -> dict[str, object]:
    """pyiqa's metrics that need no weights, by the names of metric_values.json."""
    import pyiqa
    chosen = {"psnr": ("psnr", {}), "psnr_y": ("psnry", {"color_space": "ycbcr"}),
              "ssim_y": ("ssim", {"color_space": "ycbcr"}), "ms_ssim": ("ms_ssim", {}), "gmsd": ("gmsd", {}),
              "fsim": ("fsim", {})}
    return {name: pyiqa.create_metric(model, **options) for name, (model, options) in chosen.items()}


def main() -> None:
    """Measure and write."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    from metric_pairs import pair
    from pypiqe import piqe

    from evaluation.metrics.full_reference import gray
    metrics, rows = pyiqa_metrics(), []
    for index in range(PAIRS):
        image, reference = pair(index)
        row = {name: round(float(metric(image[None], reference[None])), 6) for name, metric in metrics.items()}
        row["piqe"] = round(float(piqe(gray(image).byte().numpy())[0]), 4)
        rows.append(row)
    (HERE / "metric_values.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
