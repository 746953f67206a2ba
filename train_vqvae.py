"""Train the multi-scale VQVAE (tokenizer), from scratch or from a file.

`python train_vqvae.py --preset varsr-tiny --data trainset` or, from the published weights,
`python train_vqvae.py --init checkpoints/VQVAE.pth --data trainset --batch_size 2 --lr 1e-5`.
The result, OUTPUT/vqvae.safetensors, is what `train.py --vqvae` takes. With torchrun it trains on several devices.
"""
from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from training.flags import ADVERSARIES, add_loading_flags, add_run_flags, length_fault, loading_fault
from utils.flags import boolean, bounded, numbers


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--preset", default="varsr-tiny", help="model preset (models/config.py; default: %(default)s)")
    model.add_argument("--init", help="start from this tokenizer: vqvae.safetensors, VQVAE.pth or a model folder")
    model.add_argument("--scales", type=numbers, help="sides of the token maps, e.g. 1,2,3,5,8,12,16; the largest "
                                                      "times the down-sampling is the side of the pictures")
    model.add_argument("--stem", type=bounded(int, 1),
                       help="pixel-unshuffle factor; down-sampling = stem * 2^(levels - 1)")
    model.add_argument("--multipliers", type=numbers, help="width of each level, finest first, e.g. 1,1,2,2,4")
    model.add_argument("--base_width", type=bounded(int, 1), help="channels that the multipliers multiply")
    model.add_argument("--res_blocks", type=bounded(int, 1), help="residual blocks of each level")
    model.add_argument("--latent_channels", type=bounded(int, 1))
    model.add_argument("--vocab_size", type=bounded(int, 1), help="codes")
    model.add_argument("--linear_path", type=boolean, nargs="?", const=True,
                       help="a linear way past the network, which starts at the principal components of the crops")

    data = parser.add_argument_group("data and course")
    data.add_argument("--data", default="trainset", help="folder of photographs, searched recursively")
    add_loading_flags(data.add_argument)
    data.add_argument("--val_data", help="held-out pictures, or a folder with HR; without it, seeded crops of --data")
    data.add_argument("--val_batch", type=bounded(int, 1), default=32, help="validation crops (default: %(default)s)")
    data.add_argument("--output", default="runs/vqvae", help="folder for states, logs, sheets and the result")
    data.add_argument("--max_iters", type=bounded(int, 1), help="length in iterations (2000)")
    add_run_flags(data.add_argument)
    data.add_argument("--exp_name", default="VQVAE", help="name of the wandb run (default: %(default)s)")

    step = parser.add_argument_group("optimisation")
    step.add_argument("--batch_size", type=bounded(int, 1), default=16, help="of each process (default: %(default)s)")
    step.add_argument("--lr", type=bounded(float, 0, open_low=True), default=5e-4,
                      help="peak learning rate (default: %(default)s)")
    step.add_argument("--warmup_iters", type=bounded(int, 0), help="50, or half of a shorter run")
    step.add_argument("--clip", type=bounded(float, 0, open_low=True), default=1.0,
                      help="gradient clip (default: %(default)s)")
    step.add_argument("--ema", type=bounded(float, 0, 1), default=0.999,
                      help="decay of the weights' moving average, the result")
    step.add_argument("--precision", choices=("fp32", "fp16", "bf16"),
                      help="without: bf16 where the device computes in it, else fp32")

    loss = parser.add_argument_group("losses")
    loss.add_argument("--commitment", type=bounded(float, 0), default=0.25, help="weight (default: %(default)s)")
    loss.add_argument("--perceptual_weight", type=bounded(float, 0), default=1.0,
                      help="of LPIPS where it is here, else of the feature maps' distance; 0: without")
    loss.add_argument("--adversary", choices=ADVERSARIES,
                      help="what judges: patches of pixels, feature maps, both (both where there are feature maps)")
    loss.add_argument("--adversarial_weight", type=bounded(float, 0), default=0.1,
                      help="of the discriminator beside its adaptive weight; 0: without (default: %(default)s)")
    loss.add_argument("--adversarial_start", type=bounded(float, 0, 1), default=0.5,
                      help="share of the iterations before the discriminator takes part (default: %(default)s)")
    loss.add_argument("--continuous_share", type=bounded(float, 0, 1), default=0.25,
                      help="share of a batch that is decoded without quantisation (default: %(default)s)")
    loss.add_argument("--scale_dropout", type=bounded(float, 0, 1), default=0.1,
                      help="share of the rows that are decoded without their last scales (default: %(default)s)")
    loss.add_argument("--max_dropped", type=bounded(int, 0), default=3, help="scales that such a row loses at most")
    loss.add_argument("--revive_every", type=bounded(int, 1), default=25,
                      help="iterations between revivals of dead codes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train."""
    began = time.monotonic()
    parser = build_parser()
    args = parser.parse_args(argv)
    fault = length_fault(args, ("max_iters", "minutes")) or loading_fault(args)
    if fault:
        parser.error(fault)
    from training.run import start
    return start(Path(__file__).name, args, lambda device, ranks: _train(args, device, ranks, began))


def _train(args, device, ranks, began: float) -> int:
    from training.log import WandBSettings
    from training.run import loop_config, run_stage
    from training.tokenizer_setup import build_stage
    stage = ranks.together(lambda: build_stage(args, device, ranks))
    record = {"model": dataclasses.asdict(stage.model.config), "init": args.init, "data": args.data,
              "ranks": ranks.world, "minutes": args.minutes, "perceptual": stage.distance,
              **dataclasses.asdict(stage.settings)}
    return run_stage(stage, loop_config(args, Path(args.output), stage.settings.max_iters, began), record,
                     WandBSettings(args.exp_name) if args.wandb_flag else None, ranks)


if __name__ == "__main__":
    sys.exit(main())
