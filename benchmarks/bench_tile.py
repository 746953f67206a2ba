"""Time and weigh pictures of growing size: `python benchmarks/bench_tile.py --megapixels 1 4 16 64 256`.

Each result is four times the side of a mosaic of the sample pictures and runs in a process of its own. Prints seconds
and processor seconds (which other programs on the machine disturb less), both per megapixel, and the peak of the
resident memory, of which the model and the libraries are told apart, and writes them as JSON.
"""
from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clock import StageClock
from utils.flags import DTYPES

if TYPE_CHECKING:
    import torch

    from inference.report import FileRecord
    from models.varsr import VARSR

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "testset" / "sample" / "HR"
MEGAPIXEL, MEGABYTE = 2 ** 20, 2 ** 20
SCALE = 4


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=int, nargs="+", default=(1, 4, 16, 64), help="sizes of the results")
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "varsr-tiny"))
    parser.add_argument("--narrow", action="store_true", help="in its place a random model with next to no arithmetic: "
                                                              "the cost of everything else")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--ext", choices=("png", "tif"), default="png")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # a child process measures one size
    return parser


def mosaic(side: int):
    """A square picture of `side` pixels made of the sample pictures."""
    from PIL import Image
    whole = Image.new("RGB", (side, side))
    pictures = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.iterdir())]
    step = pictures[0].width
    places = [(x, y) for y in range(0, side, step) for x in range(0, side, step)]
    for i, place in enumerate(places):
        whole.paste(pictures[i % len(pictures)], place)
    return whole


def restore_mosaic(model: VARSR, side: int, ext: str) -> tuple[FileRecord, float, float]:
    """Restore a mosaic to a result of `side` pixels as the scripts do; its record, seconds and processor seconds.

    Raises RuntimeError where it fails.
    """
    import time

    from inference.jobs import Job, SizeRequest
    from inference.runner import Runner, RunOptions
    from inference.settings import RestoreSettings
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "mosaic.png"
        mosaic(side // SCALE).save(source)
        job = Job(source, Path(folder) / f"result.{ext}")
        start = time.process_time()
        report = Runner(model, RestoreSettings(model.config.generation), RunOptions(SizeRequest(SCALE))).run([job])
        processor = time.process_time() - start
    record = report.records[0]
    if record.error:
        raise RuntimeError(record.error)
    return record, report.seconds, processor


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One size, in this process."""
    import torch

    from benchmarks.machine import peak_memory
    from inference.settings import prepare
    from models.varsr import VARSR
    from utils.device import choose_dtype, keep_freed_memory

    device = torch.device(args.device)
    keep_freed_memory()  # as the scripts do
    model = prepare(VARSR.from_pretrained(args.model, device=device, dtype=choose_dtype(args.dtype, device)))
    size = model.config.image_size
    model.generate(torch.rand(1, 3, size, size, device=device))  # libraries load with their first use
    before = peak_memory(device)
    record, seconds, processor = restore_mosaic(model, round(math.sqrt(args.one * MEGAPIXEL)), args.ext)
    return {"megapixels": args.one, "dtype": str(model.dtype).removeprefix("torch."), "windows": record.windows,
            "seconds": seconds, "seconds_per_megapixel": seconds / args.one,
            "processor_seconds_per_megapixel": processor / args.one, "generate_seconds": record.generate_seconds,
            "render_seconds": record.render_seconds, "write_seconds": record.write_seconds,
            "model_mb": before / MEGABYTE, "peak_mb": peak_memory(device) / MEGABYTE}


def attach(model: VARSR, device: torch.device) -> StageClock:
    """A clock on the parts of a large picture, on the host and on the device."""
    from inference import generate, render
    from inference.windows import TiledPicture
    from pictures.result_file import ResultFile
    clock = StageClock(device)
    for owner, name, part in (
            (TiledPicture, "guide", "LR parts (host)"), (generate, "refiner_noise", "noise (host)"),
            (model, "generate_latent", "generation"), (model, "decode", "decoder"),
            (model, "decode_unfinished", "decoder"), (model, "finish", "finishing"),
            (render, "merged_latent", "merging latents (host)"), (render, "wavelet_color_fix", "colour fix (host)"),
            (ResultFile, "write_rows", "rows to pixels (host)"), (ResultFile, "finish", "encoding the file (host)")):
        clock.wrap(owner, name, lambda *_, part=part: part)
    return clock


def main(argv: list[str] | None = None) -> int:
    """Measure every size and report."""
    args = build_parser().parse_args(argv)
    if args.one is not None:
        try:
            print(json.dumps(measure(args)))
        except RuntimeError as error:
            raise SystemExit(str(error)) from error
        return 0
    import torch

    from benchmarks.machine import describe
    from benchmarks.random_weights import NARROW, write_random
    with tempfile.TemporaryDirectory() as folder:
        if args.narrow:
            args.model = str(Path(folder) / NARROW)
            write_random(NARROW, torch.float32, Path(args.model))
        _measure_all(args, describe(torch.device(args.device)))
    return 0


def _measure_all(args: argparse.Namespace, machine: dict) -> None:
    """Every size in a process of its own; prints and writes what has been measured so far."""
    rows = []
    for megapixels in args.megapixels:
        child = [sys.executable, __file__, "--one", str(megapixels), "--model", args.model, "--device", args.device,
                 "--dtype", args.dtype, "--ext", args.ext]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(f"{row['megapixels']:4d} MP  {row['seconds']:8.1f} s  {row['seconds_per_megapixel']:6.2f} s/MP  "
              f"{row['processor_seconds_per_megapixel']:6.2f} processor s/MP  peak {row['peak_mb']:6.0f} MB, "
              f"{row['peak_mb'] - row['model_mb']:6.0f} MB above the model", flush=True)
        if args.output:
            result = {"model": Path(args.model).name, "ext": args.ext, "machine": machine, "sizes": rows}
            Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
