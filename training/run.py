"""One training run: devices, processes, the progress bar, the exit code."""
from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.device import keep_freed_memory, training_device
from utils.errors import SIGNALLED, describe, guarded, log_level
from utils.files import require_folder
from utils.ranks import Ranks

from .log import TrainingLog, WandBSettings, open_log
from .loop import LoopConfig, Stage, TrainingDiverged, TrainLoop, bar_text
from .parallel import BACKEND

log = logging.getLogger(__name__)


def start(program: str, args: argparse.Namespace, train: Callable[[torch.device, Ranks], int]) -> int:
    """The exit code of `train`, called with the device of --device and the processes of torchrun, or this one alone.
    Whatever goes wrong is told by the main process."""
    torch.manual_seed(args.seed)

    def run() -> int:
        device = training_device(args.device)
        ranks = Ranks.from_environment(BACKEND.get(device.type, BACKEND["cpu"]))
        logging.basicConfig(level=log_level() if ranks.is_main else logging.ERROR, format="%(asctime)s %(message)s")
        try:
            return train(device, ranks)
        except Exception as error:
            if ranks.is_main:
                raise
            log.debug("%s", describe(error))
            return 1
        finally:
            ranks.close()
    return guarded(program, run)


def loop_config(args: argparse.Namespace, output: Path, max_iters: int, began: float) -> LoopConfig:
    """The loop from the flags that both training scripts have. began: when --minutes began to count
    (time.monotonic). Raises UserError for an output that is no folder."""
    require_folder("--output", output)
    return LoopConfig(output, max_iters, log_every=args.log_every, report_every=args.val_every,
                      save_every=args.save_every, keep=args.keep, resume=args.resume == "auto",
                      minutes=args.minutes, began=began)


def run_stage(stage: Stage, config: LoopConfig, settings: dict[str, Any], wandb: WandBSettings | None = None,
              ranks: Ranks | None = None) -> int:
    """Train a stage with a progress bar; the exit code is 0 when finished, 130 or 143 when stopped, 1 when it diverged
    or its files cannot be written. Raises ValueError or OSError for a log that cannot be had or a state of another run.
    """
    keep_freed_memory()
    ranks = ranks or Ranks()
    records = open_log(config.output, wandb, not config.resume) if ranks.is_main else TrainingLog([])
    loop = TrainLoop(stage, config, settings, records, ranks)
    total = config.max_iters if config.minutes is None else None
    with tqdm(total=total, initial=loop.start, unit="it", dynamic_ncols=True, mininterval=5.0,
              disable=not ranks.is_main) as bar:
        def advance(metrics: dict[str, float]) -> None:
            bar.set_postfix(bar_text(metrics), refresh=False)
            bar.update()
        try:
            finished = loop.run(advance)
        except TrainingDiverged as error:
            log.error("%s", error)
            return 1
        except OSError as error:
            log.error("the result cannot be written: %s. Make room and run the same command again, which goes on from "
                      "the last saved state", error)
            return 1
    return 0 if finished else SIGNALLED + loop.stopped_by
