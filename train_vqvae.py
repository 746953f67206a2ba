"""Train the multi-scale VQVAE (tokenizer): `python train_vqvae.py --preset varsr-tiny --data trainset`."""
from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="varsr-tiny", help="model preset (models/config.py)")
    parser.add_argument("--data", default="trainset", help="folder of photographs, searched recursively")
    parser.add_argument("--output", default="runs/vqvae", help="folder for states, log, sheets and the result")
    parser.add_argument("--max_iters", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report_every", type=int, default=500, help="iterations between validations and sheets")
    parser.add_argument("--save_every", type=int, default=500, help="iterations between saved states")
    parser.add_argument("--no_resume", action="store_true", help="start over instead of resuming from --output")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train."""
    args = build_parser().parse_args(argv)
    import torch

    from dataloader.dataset import PhotoCrops
    from models.config import PRESETS
    from models.vqvae import VQVAE
    from utils.loop import LoopConfig
    from utils.tokenizer_stage import TokenizerSettings, TokenizerStage
    from utils.training_cli import preset_config, run_stage, training_device

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = dataclasses.replace(preset_config(args.preset, PRESETS).vqvae, fidelity_width=0)
    torch.manual_seed(args.seed)
    crops = PhotoCrops(args.data, crop_size=config.image_size)
    settings = TokenizerSettings(batch_size=args.batch_size, max_iters=args.max_iters, learning_rate=args.lr,
                                 precision=args.precision, seed=args.seed)
    validation = crops.batch(settings.val_batch, torch.Generator().manual_seed(VALIDATION_SEED))
    stage = TokenizerStage(VQVAE(config), crops.batch, validation, settings, training_device(args.device))
    loop = LoopConfig(Path(args.output), args.max_iters, report_every=args.report_every,
                      save_every=args.save_every, resume=not args.no_resume)
    return run_stage(stage, loop, {"preset": args.preset, **dataclasses.asdict(settings)})


VALIDATION_SEED = 12345

if __name__ == "__main__":
    sys.exit(main())
