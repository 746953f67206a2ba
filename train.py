"""Train VARSR on pictures that are degraded while it trains, on one device or, by torchrun, on many.

`--stage sr` trains transformer and refiner on a frozen tokenizer (train_vqvae.py makes one). `--stage faithful` adds
the branch that restores LR pictures (`--stage decoder` fits the decoder to do it), and `--stage detail` the one that
makes them sharp with what transformer and refiner generate. `--stage c2i` trains class-to-image on
trainset/{class}/*, `--stage c2i_detail` adds the branch that paints its texture. The flags keep the names and meanings
of the published command line where it has them, but for --wp, now a share of the run; one that cannot act is refused.
"""
from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from training.flags import CLASS_DETAIL, DECODER, DETAIL, FAITHFUL, build_parser, parse


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train."""
    began = time.monotonic()
    args = parse(build_parser(__doc__), sys.argv[1:] if argv is None else argv)
    from training.run import start
    return start(Path(__file__).name, args, lambda device, ranks: _train(args, device, ranks, began))


def _train(args, device, ranks, began: float) -> int:
    from training.log import WandBSettings
    from training.run import loop_config, run_stage
    if args.stage == DECODER:
        from training.decoder import set_up
    elif args.stage == FAITHFUL:
        from training.faithful import set_up
    elif args.stage == DETAIL:
        from training.detail import set_up
    elif args.stage == CLASS_DETAIL:
        from training.class_detail import set_up
    else:
        from training.transformer import set_up
    setup = ranks.together(lambda: set_up(args, device, ranks))
    loop = loop_config(args, Path(args.output or Path("runs", args.exp_name)), setup.settings.max_iters, began)
    record = {"stage": args.stage, "init": args.init, "data": args.data, "ranks": ranks.world, "shards": args.fsdp,
              "minutes": args.minutes,
              "model": dataclasses.asdict(setup.model.config), **dataclasses.asdict(setup.settings)}
    wandb = WandBSettings(args.exp_name) if args.wandb_flag else None
    return run_stage(setup.make(), loop, record, wandb, ranks)


if __name__ == "__main__":
    sys.exit(main())
