"""One training run: devices, processes, the progress bar, the exit code."""
from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch
from tqdm import tqdm

from utils.device import keep_freed_memory
from utils.ranks import Ranks

from .log import TrainingLog, WandBSettings, open_log
from .loop import LoopConfig, Stage, TrainingDiverged, TrainLoop, bar_text
from .parallel import BACKEND

log = logging.getLogger(__name__)


def training_ranks(device: torch.device) -> Ranks:
    """The processes of torchrun, or this one alone."""
    return Ranks.from_environment(BACKEND.get(device.type, BACKEND["cpu"]))


def run_stage(stage: Stage, config: LoopConfig, settings: dict[str, Any], wandb: WandBSettings | None = None,
              ranks: Ranks | None = None) -> int:
    """Train a stage with a progress bar; the exit code is 0 when finished, 1 when it diverged, was stopped or its
    files cannot be written."""
    keep_freed_memory()
    ranks = ranks or Ranks()
    script = os.path.basename(sys.argv[0])
    try:
        records = open_log(config.output, wandb) if ranks.is_main else TrainingLog([])
        loop = TrainLoop(stage, config, settings, records, ranks)
    except (ValueError, RuntimeError, OSError) as error:  # a log that cannot be had, a state of another run
        print(f"{script}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    with tqdm(total=config.max_iters, initial=loop.start, unit="it", dynamic_ncols=True, mininterval=5.0,
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
    return 0 if finished else 1
