"""Train VARSR on pictures that are degraded while it trains.

`--stage sr` trains transformer and refiner on a frozen tokenizer (train_vqvae.py makes one), then `--stage decoder`
fits the decoder to what they generate. `--stage c2i` trains class-to-image on trainset/{class}/*.
"""
from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

PRECISIONS = {0: "fp32", 1: "fp16", 2: "bf16"}
VALIDATION_SEED = 12345


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags keep the names of the published one where it has them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stage", choices=("sr", "decoder", "c2i"), default="sr")
    add("--preset", default="varsr-tiny", help="model preset (models/config.py) where there is no --init")
    add("--vqvae", help="tokenizer where there is no --init: vqvae.safetensors of train_vqvae.py")
    add("--init", help="model folder to start from (needed for --stage decoder)")
    add("--data", default="trainset", help="pictures: a folder, searched recursively (c2i: a folder a class), a text "
                                           "file of `path[, weight]` lines, or a .tar shard")
    add("--data_neg", help="low-quality pictures for guidance, likewise; without it degraded pictures serve")
    add("--crops", choices=("random", "centre"), default="random",
        help="random crops at several scales from a cache of the decoded pictures, or the paper's: the middle of each "
             "picture, for data sets too large for a cache")
    add("--workers", type=int, default=0, help="processes that draw crops ahead (0: drawn when needed)")
    add("--negative_share", type=float, default=0.1, help="share of pairs that teach the low-quality class")
    add("--light", type=float, default=0.0, help="share of light degradations among the heavy ones")
    add("--upsample", default="area,bilinear,bicubic", help="how LR pictures are resized back, drawn uniformly")
    add("--output", default="runs/train", help="folder for states, log, sheets and the finished model")
    add("--max_iters", type=int, default=20000)
    add("--batch_size", type=int, default=4)
    add("--tblr", type=float, help="peak learning rate (the stage's own by default)")
    add("--twd", type=float, default=0.05, help="weight decay")
    add("--tclip", type=float, default=2.0, help="gradient clip")
    add("--wp", type=float, default=0.1, help="warm-up, share of the iterations")
    add("--wp0", type=float, default=0.005, help="first learning rate, share of the peak")
    add("--wpe", type=float, default=0.01, help="last learning rate, share of the peak")
    add("--sche", default="lin0", help="schedule: cos, lin, lin0, lin00, exp")
    add("--error_rate", type=float, default=0.0, help="share of codes replaced by wrong ones in the inputs, at most")
    add("--scale_balance", type=float, default=0.0, help="share of the cross-entropy that weighs all scales alike")
    add("--adversarial_weight", type=float, default=0.1, help="decoder stage: weight of the adversarial loss")
    add("--adversarial_start", type=float, default=0.4, help="decoder stage: share of the iterations on pixels alone")
    add("--hd", type=float, default=0.02, help="initial factor of the head")
    add("--aln", type=float, default=0.5, help="initial factor of the class modulations")
    add("--alng", type=float, default=1e-5, help="initial factor of their gates")
    add("--ema", type=float, default=0.999, help="decay of the weights' moving average, which is the result")
    add("--fp16", type=int, choices=tuple(PRECISIONS), default=2, help="0: fp32, 1: fp16, 2: bf16")
    add("--device", default="auto")
    add("--seed", type=int, default=0)
    add("--val_data", help="held-out pictures: a folder with LR and HR, or of pictures that are degraded for it; "
                           "without it, seeded crops of --data")
    add("--val_every", "--report_every", dest="report_every", type=int, default=500,
        help="iterations between validations and sheets")
    add("--save_every", type=int, default=500, help="iterations between saved states")
    add("--no_resume", action="store_true", help="start over instead of resuming from --output")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train."""
    args = build_parser().parse_args(argv)
    import torch

    from utils.loop import LoopConfig
    from utils.training_cli import build_class_to_image, build_model, run_stage, training_device, training_pairs

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    try:
        if args.stage == "c2i":
            model, pairs = build_class_to_image(args)
        else:
            model = build_model(args)
            pairs = training_pairs(args, model.config.image_size)
        device = training_device(args.device)
        stage, settings = _build_stage(args, model, pairs, device)
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    loop = LoopConfig(Path(args.output), args.max_iters, report_every=args.report_every,
                      save_every=args.save_every, resume=not args.no_resume)
    return run_stage(stage, loop, {"stage": args.stage, "model": model.config.name, **dataclasses.asdict(settings)})


def _build_stage(args, model, pairs, device):
    """The stage object and its settings from the command line."""
    import torch

    from utils.decoder_stage import DecoderSettings, DecoderStage
    from utils.training_cli import held_out_pairs
    from utils.transformer_stage import TransformerSettings, TransformerStage
    shared = {"batch_size": args.batch_size, "max_iters": args.max_iters, "precision": PRECISIONS[args.fp16],
              "seed": args.seed, "ema": args.ema}
    if args.tblr is not None:
        shared["learning_rate"] = args.tblr
    if args.stage != "decoder":
        stage_class = TransformerStage
        settings = TransformerSettings(
            weight_decay=args.twd, clip=args.tclip, schedule=args.sche, warmup_share=args.wp, warmup_start=args.wp0,
            final=args.wpe, error_rate=args.error_rate, scale_balance=args.scale_balance, **shared)
    else:
        stage_class = DecoderStage
        settings = DecoderSettings(adversarial_weight=args.adversarial_weight,
                                   adversarial_start=args.adversarial_start, **shared)
    if args.stage == "c2i":
        if args.val_data:
            raise ValueError("--val_data is for restoring: --stage c2i is validated on crops of --data")
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        validation = pairs.positives_only().draw(settings.val_batch, generator, device)
    else:
        validation = held_out_pairs(args, pairs, model.config.image_size, settings.val_batch, settings.precision)
    return stage_class(model, pairs, validation, settings, device), settings


if __name__ == "__main__":
    sys.exit(main())
