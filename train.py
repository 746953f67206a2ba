"""Train VARSR on pictures that are degraded while it trains, on one device or, by torchrun, on many.

`--stage sr` trains transformer and refiner on a frozen tokenizer (train_vqvae.py makes one), `--stage decoder` fits the
decoder to what they generate, and `--stage detail` adds the branch that makes its pictures sharp. `--stage c2i` trains
class-to-image on trainset/{class}/*. The flags keep the names and meanings of the published command line where it has
them; one that cannot act is refused.
"""
from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path

from training.flags import DECODER, DETAIL, build_parser, parse


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train."""
    args = parse(build_parser(__doc__), sys.argv[1:] if argv is None else argv)
    import torch

    from training.run import training_ranks
    from utils.device import training_device

    torch.manual_seed(args.seed)
    try:
        device = training_device(args.device)
        ranks = training_ranks(device)
    except (ValueError, RuntimeError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO if ranks.is_main else logging.ERROR, format="%(asctime)s %(message)s")
    try:
        return _train(args, device, ranks)
    finally:
        ranks.close()


def _train(args, device, ranks) -> int:
    from training.log import WandBSettings
    from training.loop import LoopConfig
    from training.run import run_stage
    from training.setup import decoder_setup, detail_setup, transformer_setup

    set_up = {DECODER: decoder_setup, DETAIL: detail_setup}.get(args.stage, transformer_setup)
    try:
        setup = ranks.together(lambda: set_up(args, device, ranks))
    except (ValueError, OSError, RuntimeError) as error:
        if ranks.is_main:
            print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    loop = LoopConfig(Path(args.output or Path("runs", args.exp_name)), setup.settings.max_iters,
                      log_every=args.log_every, report_every=args.val_every, save_every=args.save_every,
                      keep=args.keep, resume=args.resume == "auto")
    record = {"stage": args.stage, "init": args.init, "data": args.data, "ranks": ranks.world, "shards": args.fsdp,
              "model": dataclasses.asdict(setup.model.config), **dataclasses.asdict(setup.settings)}
    wandb = WandBSettings(args.exp_name) if args.wandb_flag else None
    return run_stage(setup.make(), loop, record, wandb, ranks)


if __name__ == "__main__":
    sys.exit(main())
