"""Time the training data: `python benchmarks/bench_data.py --data trainset/photos --output data.json`.

Samples per second of the loader alone, of the degradation alone on the device, and of both as training uses them; with
`--preset` also the share of a training step that waits for data. On a GPU, for pictures of 512x512:

    python benchmarks/bench_data.py --data trainset/photos --device cuda --size 512 --batch_size 128 --group 16 \\
        --workers 16 --steps 50
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WARM_UP = 3
MILLI = 1e-3
DEFAULT_SIZE, KERNEL = 512, 21


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="trainset", help="folder, text file or shard of pictures")
    add("--crops", choices=("random", "centre"), default="random",
        help="of the pyramid cache, or the paper's, decoded when they are drawn")
    add("--size", type=int, help="side of a crop (default: the preset's, else 512)")
    add("--batch_size", type=int, default=16)
    add("--group", type=int, default=4, help="samples that share the sizes of their resizing steps")
    add("--workers", type=int, default=0, help="processes that draw crops ahead")
    add("--steps", type=int, default=20, help="timed batches of each part")
    add("--device", default="cpu")
    add("--preset", help="also train this preset (random weights, bf16) and report its waiting share")
    add("--light", type=float, default=0.0, help="share of light degradations")
    add("--output", help="JSON file for the results")
    return parser


def per_second(step: Callable[[], object], samples: int, steps: int, device) -> float:
    """Samples per second over `steps` calls, after a few that are not timed."""
    from benchmarks.machine import synchronize
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return samples * steps / (time.perf_counter() - start)


def filter_times(size: int, batch: int, device) -> dict[str, float]:
    """Seconds of one filtering of a batch, by convolution and by spectra: which one `filter_each` should take."""
    import torch

    from dataloader.kernels import by_convolution, by_fourier
    kernels = torch.rand(batch, KERNEL, KERNEL, device=device)
    padded = torch.rand(batch, 3, size + KERNEL - 1, size + KERNEL - 1, device=device)
    return {name: batch / per_second(lambda: function(padded, kernels), batch, 5, device)  # noqa: B023
            for name, function in (("convolution", by_convolution), ("spectra", by_fourier))}


def degradation_step(size: int, batch: int, group: int, device) -> Callable[[], object]:
    """What degrades a batch of noise that lies on the device."""
    import torch

    from dataloader.degradation import Degradation, DegradationConfig
    degrade = Degradation(DegradationConfig.load(group=group))
    crops, generator = torch.rand(batch, 3, size, size, device=device), torch.Generator().manual_seed(0)
    return lambda: degrade.and_upsample(crops, generator)


def resident_pairs(photographs: Path, size: int, batch: int, group: int, device):
    """Pairs of crops that are cut on the device, as training with --data_on_device draws them."""
    import tempfile

    from dataloader.degradation import Degradation, DegradationConfig
    from dataloader.pairs import PairSource
    from dataloader.photo_crops import PhotoCrops
    from dataloader.resident import ResidentCrops, ResidentLoader
    with tempfile.TemporaryDirectory() as cache:
        crops = ResidentCrops(PhotoCrops(photographs, size, cache=cache), device)
    degrade = Degradation(DegradationConfig.load(group=group))
    return PairSource(ResidentLoader(crops, batch), degrade.and_upsample, group)


def waiting_share(preset: str, pairs, args: argparse.Namespace, device) -> dict[str, float]:
    """Of training steps of a preset: the share that passes before the model starts, and the step's seconds.

    On a CPU this is loading and degradation; on a GPU, where the degradation runs beside everything else, it is the
    time until the host has the batch under way.
    """

    from benchmarks.machine import synchronize
    from models.config import PRESETS
    from models.initialization import initialize
    from models.varsr import VARSR
    from training.transformer import TransformerSettings, TransformerStage
    model = VARSR(PRESETS[preset])
    initialize(model)
    waited = {"drawing": 0.0}
    prepare = pairs.prepare  # which on a GPU runs behind the step before

    def timed(*arguments):
        start = time.perf_counter()
        prepare(*arguments)
        waited["drawing"] += time.perf_counter() - start
    pairs.prepare = timed
    validation = pairs.draw(device)
    stage = TransformerStage(model, pairs, validation, TransformerSettings(batch_size=args.batch_size), device)
    for i in range(WARM_UP):
        stage.train_step(i)
    synchronize(device)
    waited["drawing"], start = 0.0, time.perf_counter()
    for i in range(args.steps):
        stage.train_step(i)
    synchronize(device)
    total = time.perf_counter() - start
    return {"step_seconds": total / args.steps, "waiting_share": waited["drawing"] / total}


def loading_rates(source, degrade, args: argparse.Namespace, device) -> dict[str, float]:
    """Samples per second of the loader alone, of the degradation alone, and of both."""
    import torch
    generator = torch.Generator().manual_seed(0)
    loading = new_pairs(source, degrade, args, device).loader
    crops = (next(loading)[0].float() / 255).to(device)
    both = new_pairs(source, degrade, args, device)
    parts = {"loader": lambda: next(loading), "degradation": lambda: degrade.and_upsample(crops, generator),
             "both": lambda: both.draw(device)}
    rates = {name: per_second(step, args.batch_size, args.steps, device) for name, step in parts.items()}
    loading.close()
    both.loader.close()
    return rates


def new_pairs(source, degrade, args: argparse.Namespace, device):
    """Pairs from the first one on."""
    from dataloader.pairs import BatchLoader, PairSource
    loader = BatchLoader(source, args.batch_size, workers=args.workers, pin_memory=device.type == "cuda")
    return PairSource(loader, degrade.and_upsample, args.group)


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe
    from dataloader.centre_crops import CentreCrops
    from dataloader.degradation import Degradation, DegradationConfig
    from dataloader.photo_crops import PhotoCrops
    from models.config import PRESETS
    from utils.device import keep_freed_memory
    keep_freed_memory()
    device = torch.device(args.device)
    args.size = args.size or (PRESETS[args.preset].image_size if args.preset else DEFAULT_SIZE)
    crops = {"random": PhotoCrops, "centre": CentreCrops}[args.crops]
    try:
        source = crops(args.data, args.size)
    except (OSError, ValueError) as error:
        print(f"bench_data.py: {error}", file=sys.stderr)
        return 1
    degrade = Degradation(DegradationConfig.load(light_probability=args.light, group=args.group))
    rates = loading_rates(source, degrade, args, device)
    for name, value in rates.items():
        print(f"{name:12s} {value:10.1f} samples/s of {args.size}x{args.size}")
    filters = filter_times(args.size, args.batch_size, device)
    for name, value in filters.items():
        print(f"filter by {name:12s} {value / MILLI:8.2f} ms a batch of {args.batch_size}")
    training = {}
    if args.preset:
        training = waiting_share(args.preset, new_pairs(source, degrade, args, device), args, device)
        print(f"{args.preset}: {training['step_seconds']:.3f} s a step, {training['waiting_share']:.1%} of it waiting")
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key not in ("output", "data")}
        record = {"machine": describe(device), "settings": settings, "samples_per_second": rates,
                  "filter_seconds": filters, "training": training, "skipped_pictures": len(source.failures)}
        Path(args.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
